"""Samples that had stopped, looked at once more in the last evaluation of f.

Each sample stops by itself and is left alone from then on, which is right where f maps each sample
by itself. Where the rows depend on each other (nodes of a graph, tokens, batch statistics), one
that has stopped may be moved from its solution by others that still run. The last evaluation of f
is of all rows, and z of those that stopped is where they stopped: there f(z) − z must still meet
the tolerance. That costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.notices import CoupledSamplesWarning, listener
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import Counter, Norm, Status, Tables
from deq_kernels.solvers.machinery.deferred_reads import read_later

SLACK = 2.0
"""A residual up to this many times its tolerance is let pass: the answer is as good as promised, to
that factor, and a coupling that weak does no harm."""

ROUNDING = 8.0
"""So are this many units of rounding of ‖f(z)‖. Of independent rows f(z) is the same, bit for bit,
or differs by what sums in another order round differently."""


Measure = Callable[[], Tensor]
"""‖f(z) − z‖ of each row by the last f(z), [B]."""

Tolerate = Callable[[], tuple[Tensor, Tensor]]
"""The tolerance of each row by the last f(z), and what rounding is relative to; each [B]."""


def row_norm(x: Tensor) -> Tensor:
    """‖x‖ of each row of x [B, dim], [B]; summed as is fastest, for comparisons with slack."""
    return torch.linalg.vector_norm(x.to(accumulate_dtype(x.dtype)), dim=1)


def difference_norm(x: Tensor, y: Tensor) -> Tensor:
    """‖x − y‖ of each row, [B], likewise."""
    accum = accumulate_dtype(x.dtype)
    return torch.linalg.vector_norm(x.to(accum) - y.to(accum), dim=1)


def look_for_coupling(
    tables: Tables, before: int, unit: float, measure: Measure, tolerate: Tolerate
) -> None:
    """Tell of samples that had stopped as converged and do not meet their tolerance any more.

    On a GPU the host does not wait for the answer: the warning comes when a later solve begins.

    Args:
        tables: of the solve, which has ended.
        before: samples that stopped before this evaluation, counted from 1, are looked at.
        unit: of rounding, relative.
        measure: see `Measure`.
        tolerate: see `Tolerate`.
    """
    tell, batch = listener(), len(tables.counters)
    if tables.counters.device.type == "cpu" and not _any_moved(tables, before, measure):
        return
    frozen = tables.counters[:, Counter.STATUS] == Status.CONVERGED
    frozen &= tables.counters[:, Counter.STEPS] < before
    residual, (tolerance, size) = measure(), tolerate()
    missed = frozen & ~(residual <= SLACK * tolerance + ROUNDING * unit * size)  # NaN misses it
    worst = torch.where(missed, residual, -1.0).argmax(0, keepdim=True)
    numbers = torch.cat(
        [part.double() for part in (missed.sum(0, keepdim=True), residual[worst], tolerance[worst])]
    )

    def judge(numbers: list[float]) -> None:
        count, residual, tolerance = numbers
        if count:
            tell(CoupledSamplesWarning, _message(int(count), batch, residual, tolerance))

    read_later(numbers, judge)


def _any_moved(tables: Tables, before: int, measure: Measure) -> bool:
    """Whether a sample that had stopped has another residual now, on a CPU.

    That of an independent sample is the same, so that most solves end here; small tables are read
    in a fraction of the time by NumPy.
    """
    counters = tables.counters.numpy()
    frozen = counters[:, int(Counter.STATUS)] == int(Status.CONVERGED)
    frozen &= counters[:, int(Counter.STEPS)] < before
    if not frozen.any():
        return False
    stopped_at = tables.record.numpy()[:, int(Norm.BEST)]
    return bool((frozen & ~(measure().numpy() <= SLACK * stopped_at)).any())


def _message(count: int, batch: int, residual: float, tolerance: float) -> str:
    return (
        f"{count} of {batch} samples had converged and were stopped, but others have moved them "
        "from their solution since: in the last evaluation of f their residual is up to "
        f"{residual:.1e}, where {tolerance:.1e} was allowed. What they return is no solution. "
        "f must map each sample, a row of z, by itself, and be the same in all evaluations: no "
        "batch statistics (BatchNorm in training mode), no attention or edges across rows, no new "
        "random numbers. Make rows that belong together one sample, as z0[None] of shape [1, ...]."
    )
