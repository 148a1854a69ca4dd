"""One provider on one equation: what is kept of it, how it is measured, what a table shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..columns import Column
from ..suite_report import ProviderRow
from ..text import quartiles, three_digits
from ..timing import Spread, finite_or_none, ratio_spread, spread

if TYPE_CHECKING:
    from .checks import Work

# As the profiler shows names, and as the compiler mangles them.
_OWN_KERNEL = re.compile(r"(^|[\s:])deq::|^_ZN3deq")


@dataclass(frozen=True)
class Row(ProviderRow):
    """One provider on one equation. What was not measured is None.

    Attributes:
        steps: of the graph that took most.
        difference: largest difference of an entry to the answer in float64.
        residual: largest entry of f(x) - x, in float64.
        milliseconds: time of one solve.
        time_over_ours: time divided by that of ``ours`` in the same round.
        launches: kernels that one solve launches on a GPU.
        own_launches: those of this package's library among them: the iteration itself.
    """

    steps: int | None = None
    difference: float | None = None
    residual: float | None = None
    milliseconds: Spread | None = None
    time_over_ours: Spread | None = None
    launches: int | None = None
    own_launches: int | None = None


COLUMNS = (
    Column("provider", lambda row: row.provider),
    Column("ms", lambda row: three_digits(row.milliseconds.median)),
    Column("quartiles", lambda row: quartiles(row.milliseconds)),
    Column("/ ours", lambda row: row.time_over_ours and f"{row.time_over_ours.median:.2f}"),
    Column("steps", lambda row: str(row.steps)),
    Column("difference", lambda row: f"{row.difference:.1e}"),
    Column("residual", lambda row: f"{row.residual:.1e}"),
    Column("launches", lambda row: None if row.launches is None else str(row.launches)),
)


def measured_row(
    provider: str,
    work: Work,
    launches: Sequence[str] | None,
    samples: Sequence[float] | None,
    ours: Sequence[float] | None,
) -> Row:
    """The row of a provider that is there.

    Args:
        provider: its name.
        work: what one of its solves did.
        launches: names of the kernels that it launched; None where the device does not say.
        samples: seconds of a solve, by round; None of one that was refused.
        ours: those of ``ours``; None where it was not timed.
    """
    row = Row(
        provider=provider,
        status="timed" if work.refusal is None else "refused",
        reason=work.refusal,
        steps=work.steps,
        difference=finite_or_none(work.difference),
        residual=finite_or_none(work.residual),
        launches=None if launches is None else len(launches),
        own_launches=None if launches is None else sum(map(is_own_kernel, launches)),
    )
    if samples is None:
        return row
    return replace(
        row,
        milliseconds=spread([s * 1e3 for s in samples]),
        time_over_ours=ratio_spread(samples, ours),
    )


def is_own_kernel(name: str) -> bool:
    """Whether a kernel is one of the CUDA library: its name begins with the library's namespace."""
    return _OWN_KERNEL.search(name) is not None
