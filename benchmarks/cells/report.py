"""The result of a run as data: what the JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..report import Report, Status
from ..timing import Spread
from .problem import Direction
from .providers import PLAIN


@dataclass(frozen=True)
class Row:
    """One provider on one equation. What was not measured is None.

    Attributes:
        provider: its name.
        status: ``timed``; ``refused`` because its answer is another; or ``absent``.
        reason: why it was refused or is absent.
        steps: of the graph that took most.
        difference: largest difference of an entry to the answer in float64.
        residual: largest entry of f(x) - x, in float64.
        milliseconds: time of one solve.
        time_over_ours: time divided by that of ``ours`` in the same round.
        launches: kernels that one solve launches on a GPU.
        own_launches: those of this package's library among them: the iteration itself.
    """

    provider: str
    status: Status
    reason: str | None
    steps: int | None = None
    difference: float | None = None
    residual: float | None = None
    milliseconds: Spread | None = None
    time_over_ours: Spread | None = None
    launches: int | None = None
    own_launches: int | None = None


@dataclass(frozen=True)
class CaseResult:
    """One case with the rows of both equations.

    Attributes:
        name: of the case.
        graphs: how many.
        nodes: of all graphs.
        features: of a node.
        entries: of A.
        other_load_cores: cores that other processes used during the rounds, on average; None
            where the system does not say.
        solve: rows of X = φ(W X A + B).
        adjoint: rows of its adjoint.
        arithmetic_cores: how many cores' worth of arithmetic the threads got; None where nobody
            looked.
    """

    name: str
    graphs: int
    nodes: int
    features: int
    entries: int
    other_load_cores: float | None
    solve: tuple[Row, ...]
    adjoint: tuple[Row, ...]
    arithmetic_cores: float | None = None

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
