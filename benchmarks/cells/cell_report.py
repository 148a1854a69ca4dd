"""The result of a run of structured cells as data: what the JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..suite_report import MeasuredCase, Report
from .equation_row import Row
from .problem import Direction
from .providers import PLAIN


@dataclass(frozen=True, kw_only=True)
class CaseResult(MeasuredCase):
    """One case with the rows of both equations.

    Attributes:
        graphs: how many.
        nodes: of all graphs.
        features: of a node.
        entries: of A.
        solve: rows of X = φ(W X A + B).
        adjoint: rows of its adjoint.
    """

    graphs: int
    nodes: int
    features: int
    entries: int
    solve: tuple[Row, ...]
    adjoint: tuple[Row, ...]

    @property
    def rows(self) -> dict[Direction, tuple[Row, ...]]:
        """Those of both equations."""
        return {Direction.SOLVE: self.solve, Direction.ADJOINT: self.adjoint}


@dataclass(frozen=True, kw_only=True)
class CellReport(Report):
    """One run.

    Attributes:
        tolerance: the largest change of an entry at which an iteration ends.
    """

    tolerance: float
    cases: tuple[CaseResult, ...]

    def tables(self) -> Sequence[tuple[str, Sequence[Row]]]:
        """The rows of both equations of every case."""
        return [
            (f"{case.name} {direction.value}", rows)
            for case in self.cases
            for direction, rows in case.rows.items()
        ]


def best_plain(rows: Sequence[Row]) -> Row | None:
    """The fastest formulation in plain PyTorch; None where none was timed."""
    timed = [row for row in rows if row.provider.startswith(PLAIN) and row.milliseconds]
    return min(timed, key=_median, default=None)


def _median(row: Row) -> float:
    assert row.milliseconds is not None, "only rows that were timed are compared"
    return row.milliseconds.median
