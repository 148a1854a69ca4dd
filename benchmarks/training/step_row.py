"""A training step of one provider: what is kept of it, how it is measured, what a table shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..columns import Column
from ..provider import OURS
from ..suite_report import ProviderRow
from ..text import three_digits
from ..timing import Spread, ratio_spread, spread


@dataclass(frozen=True)
class Row(ProviderRow):
    """One provider. What was not measured is None.

    Attributes:
        steps: evaluations of the cell in the forward solve, of the sample that took most.
        cosine: of its parameter gradient with that of ``ours``.
        forward_ms, backward_ms: the two halves of a step.
        step_over_ours: both together, divided by those of ``ours`` in the same round.
    """

    steps: int | None = None
    cosine: float | None = None
    forward_ms: Spread | None = None
    backward_ms: Spread | None = None
    step_over_ours: Spread | None = None


COLUMNS = (
    Column("provider", lambda row: row.provider),
    Column("forward ms", lambda row: three_digits(row.forward_ms.median)),
    Column("backward ms", lambda row: three_digits(row.backward_ms.median)),
    Column("/ ours", lambda row: row.step_over_ours and f"{row.step_over_ours.median:.2f}"),
    Column("steps", lambda row: None if row.steps is None else str(row.steps)),
    Column("cosine", lambda row: f"{row.cosine:.4f}"),
)


def with_times(row: Row, seconds: Mapping[str, tuple[float, ...]]) -> Row:
    """The row with its times, unless it was refused or is absent.

    Args:
        row: what is known without times.
        seconds: all samples, by ``PROVIDER forward`` and ``PROVIDER backward``.
    """
    if row.status != "timed":
        return row

    def both(name: str) -> list[float]:
        halves = zip(seconds[f"{name} forward"], seconds[f"{name} backward"], strict=True)
        return [sum(pair) for pair in halves]

    ours = both(OURS) if f"{OURS} forward" in seconds else None
    return replace(
        row,
        forward_ms=spread([1e3 * second for second in seconds[f"{row.provider} forward"]]),
        backward_ms=spread([1e3 * second for second in seconds[f"{row.provider} backward"]]),
        step_over_ours=ratio_spread(both(row.provider), ours),
    )
