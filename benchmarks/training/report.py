"""The result of a run as data: what the JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..report import Report, Status
from ..timing import Spread


@dataclass(frozen=True)
class Row:
    """One provider. What was not measured is None.

    Attributes:
        provider: its name.
        status: ``timed``; ``refused`` because its gradient is another; or ``absent``.
        reason: why it was refused or is absent.
        steps: evaluations of the cell in the forward solve, of the sample that took most.
        cosine: of its parameter gradient with that of ``ours``.
        forward_ms, backward_ms: the two halves of a step.
        step_over_ours: both together, divided by those of ``ours`` in the same round.
    """

    provider: str
    status: Status
    reason: str | None
    steps: int | None = None
    cosine: float | None = None
    forward_ms: Spread | None = None
    backward_ms: Spread | None = None
    step_over_ours: Spread | None = None


@dataclass(frozen=True)
class CaseResult:
    """One case.

    Attributes:
        name: of the case.
        parameters: of the model.
        other_load_cores: cores that other processes used during the rounds, on average; None
            where the system does not say.
        rows: one per provider.
        arithmetic_cores: how many cores' worth of arithmetic the threads got; None where nobody
            looked.
    """

    name: str
    parameters: int
    other_load_cores: float | None
    rows: tuple[Row, ...]
    arithmetic_cores: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepReport(Report):
    """One run."""

    cases: tuple[CaseResult, ...]

    def tables(self) -> Sequence[tuple[str, Sequence[Row]]]:
        """The rows of every case."""
        return [(case.name, case.rows) for case in self.cases]
