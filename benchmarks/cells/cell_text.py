"""Reports of structured cells as text: a table for the terminal, Markdown for a README."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import table_lines
from ..provider import OURS
from ..text import (
    machine_line,
    markdown_origin,
    markdown_row,
    neighbours,
    three_digits,
    warnings,
)
from .cell_report import CaseResult, CellReport, best_plain
from .equation_row import COLUMNS, Row
from .problem import Direction
from .providers import PLAIN

_NOTES = """\
ms: median time of one solve from zero until no entry changes by {tolerance:g}. / ours: median over
the rounds of the time divided by that of ours. steps: of the graph that takes most. difference:
largest difference of an entry to the answer in float64. residual: largest entry of f(x) - x."""
_LAUNCHES = "launches: kernels that one solve launches."
_BEST_PLAIN = "best plain PyTorch"


def format_table(report: CellReport) -> str:
    """Return the report as an aligned plain-text table, one block per case and equation."""
    blocks = [machine_line(report)]
    for case in report.cases:
        for direction in Direction:
            blocks.append(_block(case, direction, report.dtype))
    blocks.append(_NOTES.format(tolerance=report.tolerance))
    if any(row.launches is not None for case in report.cases for row in case.solve):
        blocks.append(_LAUNCHES)
    return "\n\n".join(blocks + warnings(report))


def format_markdown(report: CellReport, source: str) -> str:
    """Return the report as Markdown: two rows per case, and of plain PyTorch the fastest.

    Args:
        report: what to show.
        source: path of its JSON as seen from the document, named below the table.
    """
    plain = any(name.startswith(PLAIN) for name in report.providers)
    others = [name for name in report.providers if name != OURS and not name.startswith(PLAIN)]
    names = [
        *([OURS] if OURS in report.providers else []),
        *([_BEST_PLAIN] if plain else []),
        *others,
    ]
    lines = [
        markdown_row(["graphs × nodes × features", "", *names]),
        markdown_row(["---", "---", *("---:" for _ in names)]),
    ]
    for case in report.cases:
        for direction, rows in case.rows.items():
            cells = [_markdown_cell(name, rows) for name in names]
            lines.append(markdown_row([_markdown_case(case), direction.value, *cells]))
    blocks = [
        "\n".join(lines),
        f"Median milliseconds of one {report.dtype} solve, until no entry changes by "
        f"{report.tolerance:g}, over {report.rounds} interleaved rounds (in brackets: times that "
        "of ours, median over the rounds).",
        *markdown_origin(report, source),
    ]
    return "\n\n".join(blocks)


def _block(case: CaseResult, direction: Direction, dtype: str) -> str:
    title = (
        f"{case.name} {dtype}, {direction.value}: {case.graphs} graph(s), {case.nodes} nodes, "
        f"{case.entries} entries of A"
    )
    title += neighbours(case)
    rows = case.rows[direction]
    return "\n".join([title, *table_lines(COLUMNS, rows)])


def _markdown_case(case: CaseResult) -> str:
    return case.name.replace("-chains", ", chains").replace("x", " × ")


def _markdown_cell(name: str, rows: Sequence[Row]) -> str:
    if name == _BEST_PLAIN:
        best = best_plain(rows)
        return "–" if best is None else _markdown_time(best, best.provider.removeprefix(PLAIN))
    row = next(row for row in rows if row.provider == name)
    return _markdown_time(row, "")


def _markdown_time(row: Row, label: str) -> str:
    if row.milliseconds is None:
        return row.status
    text = three_digits(row.milliseconds.median)
    notes = [label] if label else []
    if row.time_over_ours is not None and row.provider != OURS:
        notes.append(f"{row.time_over_ours.median:.1f}×")
    return f"{text} ({', '.join(notes)})" if notes else text
