"""A whole solve of one provider: what is kept of it, how it is measured, what a table shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..columns import Column
from ..provider import OURS
from ..suite_report import ProviderRow
from ..text import quartiles, three_digits
from ..timing import Spread, finite_or_none, ratio_spread, spread

if TYPE_CHECKING:
    from .cases import Case
    from .checks import Work
    from .harness import SolveRun
    from .providers import SolveProvider


@dataclass(frozen=True)
class Row(ProviderRow):
    """One provider on one case. What was not measured is None.

    Attributes:
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

    evaluations: int | None = None
    iterate_difference: float | None = None
    residual_ratio: float | None = None
    milliseconds: Spread | None = None
    time_over_ours: Spread | None = None
    floor_bytes: int | None = None
    gigabytes_per_second: float | None = None
    floor_share: float | None = None
    fits_cache: bool | None = None


COLUMNS = (
    Column("provider", lambda row: row.provider),
    Column("ms", lambda row: three_digits(row.milliseconds.median)),
    Column("quartiles", lambda row: quartiles(row.milliseconds)),
    Column("/ ours", lambda row: row.time_over_ours and f"{row.time_over_ours.median:.2f}"),
    Column("GB/s", lambda row: f"{row.gigabytes_per_second:.1f}"),
    Column("of {ceiling}", lambda row: show_share(row)),
    Column("difference", lambda row: f"{row.iterate_difference:.1e}"),
    Column("evals", lambda row: str(row.evaluations)),
)


def measured_row(
    provider: SolveProvider,
    case: Case,
    work: Work,
    seconds: Mapping[str, tuple[float, ...]],
    run: SolveRun,
    ceiling: Spread,
) -> Row:
    """The row of a provider that is there.

    Args:
        provider: it.
        case: what it solved.
        work: what one of its solves did.
        seconds: all samples, by provider; none of one that was refused.
        run: that of the case.
        ceiling: the bandwidth that the rate is compared with, in gigabytes per second.
    """
    row = Row(
        provider=provider.name,
        status="timed" if work.refusal is None else "refused",
        reason=work.refusal,
        evaluations=work.evaluations,
        iterate_difference=finite_or_none(work.iterate_difference),
        residual_ratio=finite_or_none(work.residual_ratio),
    )
    if work.refusal is not None:
        return row
    samples = seconds[provider.name]
    milliseconds = spread([s * 1e3 for s in samples])
    return replace(
        row,
        milliseconds=milliseconds,
        time_over_ours=ratio_spread(samples, seconds.get(OURS)),
        **rates(provider, case, milliseconds.median * 1e-3, run, ceiling),
    )


def rates(
    provider: SolveProvider, case: Case, seconds: float, run: SolveRun, ceiling: Spread
) -> dict[str, Any]:
    """The fields that say how a time compares with the least traffic."""
    itemsize = run.dtype.itemsize
    floor_bytes = case.floor_bytes(itemsize, provider.history_itemsize)
    rate = floor_bytes / seconds * 1e-9
    cache = run.device.cache_bytes()
    working_set = case.working_set_bytes(itemsize, provider.history_itemsize)
    return {
        "floor_bytes": floor_bytes,
        "gigabytes_per_second": rate,
        "floor_share": rate / ceiling.median,
        "fits_cache": None if cache is None else working_set <= cache,
    }


def show_share(row: Any) -> str:
    """The share of the ceiling, marked where the ceiling is no bound."""
    if row.floor_share is None:
        return "–"
    return f"{row.floor_share:.0%}" + ("*" if row.fits_cache else "")
