"""The result of a run as data: what the JSON holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..device import Ceiling
from ..report import Report, Status
from ..timing import Spread


@dataclass(frozen=True)
class Row:
    """One provider on one case. What was not measured is None.

    Attributes:
        provider: its name.
        status: ``timed``; ``refused`` because it did not do the same work; or ``absent``.
        reason: why it was refused or is absent.
        evaluations: evaluations of the map in one solve.
        iterate_difference: largest relative difference to the float64 anchor over the batch.
        residual_ratio: largest residual norm over the anchor's.
        milliseconds: time of one solve.
        time_over_ours: time divided by that of ``ours`` in the same round.
        floor_bytes: least traffic of the solver with this provider's history dtype.
        gigabytes_per_second: floor_bytes over the median time; for a provider that moves more
            than the floor this is its useful rate, not its traffic.
        floor_share: gigabytes_per_second over that of the ceiling.
        fits_cache: whether state and directions fit the last-level cache, so that the ceiling is
            no bound; None where the size of the cache is unknown.
    """

    provider: str
    status: Status
    reason: str | None
    evaluations: int | None = None
    iterate_difference: float | None = None
    residual_ratio: float | None = None
    milliseconds: Spread | None = None
    time_over_ours: Spread | None = None
    floor_bytes: int | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    fits_cache: bool | None = None


@dataclass(frozen=True)
class StepRow:
    """One way to run the step, recorded in a CUDA graph, with the map taken off.

    Attributes:
        name: the provider, or ours in one regime of its kernels.
        status: ``timed`` or ``refused``.
        reason: why it was refused.
        microseconds: per step, of a replayed solve less a replay of the map alone.
        floor_bytes: least traffic of all steps with this history dtype.
        gigabytes_per_second: floor_bytes over the median time of all steps.
        floor_share: gigabytes_per_second over that of the ceiling.
        fits_cache: as in ``Row``.
    """

    name: str
    status: Status
    reason: str | None
    microseconds: Spread | None = None
    floor_bytes: int | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    fits_cache: bool | None = None


@dataclass(frozen=True)
class CaseResult:
    """One case with all its rows.

    Attributes:
        relative_residual: smallest residual norm over norm of z in the batch, of the anchor.
        map_milliseconds: the evaluations of the map alone, which every row contains.
        ceiling_gigabytes_per_second: measured in the rounds of this case.
        other_load_cores: cores that other processes used during the rounds, on average; None
            where the system does not say.
        steps_recorded: the steps in a CUDA graph; empty where none can be recorded.
        arithmetic_cores: how many cores' worth of arithmetic the threads got; None where nobody
            looked.
    """

    name: str
    batch: int
    dim: int
    steps: int
    relative_residual: float
    map_milliseconds: Spread
    ceiling_gigabytes_per_second: Spread
    other_load_cores: float | None
    rows: tuple[Row, ...]
    steps_recorded: tuple[StepRow, ...] = ()
    arithmetic_cores: float | None = None


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
class BroydenReport(Report):
    """One run: where, with what, and all its numbers.

    Attributes:
        ceiling: the operation whose bandwidth shares refer to: STREAM's triad on a CPU, a copy
            within the device's memory on a GPU.
    """

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
