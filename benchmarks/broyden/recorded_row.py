"""A step recorded in a CUDA graph: what is kept of it, how it is measured, what a table shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..columns import Column
from ..suite_report import Status
from ..text import quartiles, three_digits
from ..timing import Spread, spread
from .solve_row import rates, show_share

if TYPE_CHECKING:
    from .captured import Variant
    from .cases import Case
    from .harness import SolveRun


@dataclass(frozen=True)
class StepRow:
    """One way to run the step, recorded in a CUDA graph, with the map taken off.

    Attributes:
        name: the provider, or ours in one regime of its kernels.
        status: ``timed`` or ``refused``.
        reason: why it was refused.
        microseconds: per step, of a replayed solve less a replay of the map alone.
        floor_bytes, gigabytes_per_second, floor_share, fits_cache: as in `Row`, of all steps.
    """

    name: str
    status: Status
    reason: str | None
    microseconds: Spread | None = None
    floor_bytes: int | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    fits_cache: bool | None = None


COLUMNS = (
    Column("recorded step", lambda row: row.name),
    Column("us", lambda row: three_digits(row.microseconds.median)),
    Column("quartiles", lambda row: quartiles(row.microseconds)),
    Column("GB/s", lambda row: f"{row.gigabytes_per_second:.1f}"),
    Column("of {ceiling}", show_share),
)


def measured_step(
    variant: Variant,
    case: Case,
    replays: Sequence[float],
    maps: Sequence[float],
    run: SolveRun,
    ceiling: Spread,
) -> StepRow:
    """The row of a step that did the same work as the others.

    Args:
        variant: it.
        case: what it solved.
        replays: seconds of a replayed solve, by round.
        maps: those of a replay of the map alone.
        run: that of the case.
        ceiling: the bandwidth that the rate is compared with, in gigabytes per second.
    """
    steps = spread([replay - only for replay, only in zip(replays, maps, strict=True)])
    if steps.median <= 0:
        reason = "the replay with steps was no slower than the one without"
        return StepRow(variant.name, "refused", reason)
    return StepRow(
        variant.name,
        "timed",
        None,
        microseconds=spread([s * 1e6 / case.steps for s in steps.samples]),
        **rates(variant.provider, case, steps.median, run, ceiling),
    )
