"""Tables for the terminal, made of the columns that each kind of row declares beside its fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .text import align


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        header: its title; ``{ceiling}`` in it is replaced where a suite has one.
        show: from a timed row to its text; None where the row has no such number. A column without
            any number is left out.
    """

    header: str
    show: Callable[[Any], str | None]


def table_lines(columns: Sequence[Column], rows: Sequence[Any], **names: object) -> list[str]:
    """The timed rows in aligned columns, then a line for each of the others with the reason.

    Args:
        columns: the first one names the row.
        rows: of one case, of the type that the columns belong to.
        names: what the headers have in braces.
    """
    timed = [row for row in rows if row.status == "timed"]
    texts = {column.header: [column.show(row) for row in timed] for column in columns}
    shown = {
        header.format(**names): cells
        for header, cells in texts.items()
        if not timed or any(cell is not None for cell in cells)
    }
    table = [
        tuple(shown),
        *(tuple(cell or "-" for cell in cells) for cells in zip(*shown.values(), strict=True)),
    ]
    others = [row for row in rows if row.status != "timed"]
    return [
        *align(table),
        *(f"  {columns[0].show(row)}: {row.status}: {row.reason}" for row in others),
    ]
