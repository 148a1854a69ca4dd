"""Samples that had stopped, looked at once more in the last evaluation of f.

Each sample stops by itself and is left alone from then on, which is right where f maps each sample
by itself. Where the rows depend on each other (nodes of a graph, tokens, batch statistics), one
that has stopped may be moved from its solution by others that still run. The last evaluation of f
is of all rows, and z of those that stopped is where they stopped: there f(z) − z must still meet
the tolerance. That costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deq_kernels.notices import CoupledSamplesWarning, listener
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import Counter, Status, Tables
from deq_kernels.solvers.late import read_later

SLACK = 2.0
"""A residual up to this many times its tolerance is let pass: the answer is as good as promised, to
that factor, and a coupling that weak does no harm."""

ROUNDING = 8.0
"""So are this many units of rounding of ‖f(z)‖. Of independent rows f(z) is the same, bit for bit,
or differs by what sums in another order round differently."""


@dataclass(frozen=True, slots=True)
class Remeasured:
    """Rows as the last evaluation found them; each [rows].

    Attributes:
        residual: their residual.
        tolerance: what it may be.
        size: what a unit of rounding is relative to.
    """

    residual: Tensor
    tolerance: Tensor
    size: Tensor


Measure = Callable[[Tensor | None], Remeasured]
"""Measures rows, [n] int64 or None for all, by the last f(z)."""


def remeasured(
    f_z: Tensor, z: Tensor, rows: Tensor | None, *, rtol: float, atol: float
) -> Remeasured:
    """‖f(z) − z‖ against atol + rtol ‖f(z)‖."""
    if rows is not None:
        f_z, z = f_z.index_select(0, rows), z.index_select(0, rows)
    accum = accumulate_dtype(z.dtype)
    f_z = f_z.to(accum)
    # Sums in any order and precision will do for a comparison with that much slack.
    residual = torch.linalg.vector_norm(f_z - z.to(accum), dim=1)
    f_norm = torch.linalg.vector_norm(f_z, dim=1)
    return Remeasured(residual, atol + rtol * f_norm, f_norm)


def look_for_coupling(tables: Tables, before: int, unit: float, measure: Measure) -> None:
    """Tell of samples that had stopped as converged and do not meet their tolerance any more.

    On a GPU nobody waits for the answer: it is told when a later solve begins.

    Args:
        tables: of the solve, which has ended.
        before: samples that stopped before this evaluation, counted from 1, are looked at.
        unit: of rounding, relative.
        measure: see `Measure`.
    """
    tell, batch = listener(), len(tables.counters)

    def judge(numbers: list[float]) -> None:
        count, residual, tolerance = numbers
        if count:
            tell(CoupledSamplesWarning, _message(int(count), batch, residual, tolerance))

    if tables.counters.device.type != "cpu":
        frozen = tables.counters[:, Counter.STATUS] == Status.CONVERGED
        frozen &= tables.counters[:, Counter.STEPS] < before
        found = measure(None)
        missed = frozen & ~(found.residual <= _limit(found, unit))
        worst = torch.where(missed, found.residual, -1.0).argmax(0, keepdim=True)
        read_later(
            torch.cat(
                [missed.sum(0, keepdim=True), found.residual[worst], found.tolerance[worst]]
            ).double(),
            judge,
        )
        return
    # Small tables are read in a fraction of the time by NumPy, and most solves end here.
    counters = tables.counters.numpy()
    stopped = counters[:, Counter.STATUS] == Status.CONVERGED
    stopped &= counters[:, Counter.STEPS] < before
    count = int(stopped.sum())
    if count:
        found = measure(None if count == batch else torch.from_numpy(stopped.nonzero()[0]))
        residual, limit = found.residual.numpy(), _limit(found, unit).numpy()
        missed = ~(residual <= limit)  # NaN misses it
        if missed.any():
            row = np.where(missed, residual, -1.0).argmax()
            judge([float(x) for x in (missed.sum(), residual[row], found.tolerance[row])])


def _limit(found: Remeasured, unit: float) -> Tensor:
    """The largest residual of each row that is let pass."""
    return SLACK * found.tolerance + ROUNDING * unit * found.size


def _message(count: int, batch: int, residual: float, tolerance: float) -> str:
    return (
        f"{count} of {batch} samples had converged and were stopped, but others have moved them "
        "from their solution since: in the last evaluation of f their residual is up to "
        f"{residual:.1e}, where {tolerance:.1e} was allowed. What they return is no solution. "
        "f must map each sample, a row of z, by itself, and be the same in all evaluations: no "
        "batch statistics (BatchNorm in training mode), no attention or edges across rows, no new "
        "random numbers. Make rows that belong together one sample, as z0[None] of shape [1, ...]."
    )
