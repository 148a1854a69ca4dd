"""The result of a run of whole solves as data: what the JSON holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..device import Ceiling
from ..suite_report import MeasuredCase, Report
from ..timing import Spread
from .recorded_row import StepRow
from .solve_row import Row


@dataclass(frozen=True, kw_only=True)
class CaseResult(MeasuredCase):
    """One case with all its rows.

    Attributes:
        relative_residual: smallest residual norm over norm of z in the batch, of the anchor.
        map_milliseconds: the evaluations of the map alone, which every row contains.
        ceiling_gigabytes_per_second: measured in the rounds of this case.
        steps_recorded: the steps in a CUDA graph; empty where none can be recorded.
    """

    batch: int
    dim: int
    steps: int
    relative_residual: float
    map_milliseconds: Spread
    ceiling_gigabytes_per_second: Spread
    rows: tuple[Row, ...]
    steps_recorded: tuple[StepRow, ...] = ()


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of one provider; ``peak_bytes`` or ``reason`` is None."""

    provider: str
    peak_bytes: int | None
    reason: str | None


@dataclass(frozen=True)
class MemoryResult:
    """Peak solver memory of one case.

    Attributes:
        state_bytes: bytes of one state [batch, dim], the natural unit of the rows.
    """

    case: str
    state_bytes: int
    rows: tuple[MemoryRow, ...]


@dataclass(frozen=True, kw_only=True)
class SolveReport(Report):
    """One run: where, with what, and all its numbers.

    Attributes:
        ceiling: the operation whose bandwidth shares refer to: STREAM's triad on a CPU, a copy
            within the device's memory on a GPU.
        method: what solved, for titles.
        traffic: the least that a step moves, for the notes below a table.
    """

    method: ClassVar[str] = "Broyden"
    traffic: ClassVar[str] = "2k + 6 vectors for the step with k directions"

    ceiling: Ceiling
    cases: tuple[CaseResult, ...]
    memory: MemoryResult | None = None

    def tables(self) -> Sequence[tuple[str, Sequence[Row]]]:
        """The rows of every case."""
        return [(case.name, case.rows) for case in self.cases]

    @property
    def refusals(self) -> tuple[str, ...]:
        """One line for everything that was refused."""
        steps = (
            f"{case.name}: step of {step.name} {step.reason}"
            for case in self.cases
            for step in case.steps_recorded
            if step.status == "refused"
        )
        return (*super().refusals, *steps)
