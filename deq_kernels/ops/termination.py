"""The per-sample tables of a fixed-point solve, and the stopping rule as PyTorch states it.

The tables are shared by all solver steps (`csrc/algebra/termination.h` names the same columns):

- `record` [batch, 6 + max_steps] float64: the best, first and last progress-marking residual
  norm, what the methods of Broyden and Anderson keep per sample, then the trace, the residual
  norm at each evaluation, NaN where none was;
- `counters` [batch, 7] int64: status, stored directions, evaluations, rejections, the evaluation
  at which progress was last marked, and Broyden's backtracks and estimates;
- `active` [1] int64: how many samples still run. Both read and written: the ops keep it up to date
  from its value before the step, by counting anew or by subtracting the samples that stop, so it
  must hold the number of samples whose status is RUNNING whenever a step begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype


class Status(IntEnum):
    """What became of one sample."""

    RUNNING = 0
    CONVERGED = 1
    """‖f(z) − z‖ ≤ atol + rtol ‖f(z)‖ at the returned iterate."""
    MAX_STEPS = 2
    """The evaluations were used up."""
    STALLED = 3
    """The best residual has not fallen by 1 % within `stall_steps` evaluations."""
    DIVERGED = 4
    """The residual was not finite, or grew by `divergence_factor`, and restarts did not help."""


class Norm(IntEnum):
    """The first columns of `record`."""

    BEST = 0
    FIRST = 1
    PROGRESS = 2
    BASE = 3
    """Broyden: the residual norm where the newest direction starts."""
    GAMMA = 4
    """Broyden: scale of the initial inverse, H₀ = −γ I."""
    SCALE = 5
    """Broyden and Anderson: the power of two that the stored vectors which dots are taken with,
    directions or changes of the residual, are multiplied with."""


class Counter(IntEnum):
    """Columns of `counters`."""

    STATUS = 0
    COUNT = 1
    STEPS = 2
    REJECTIONS = 3
    PROGRESS_STEP = 4
    BACKTRACKS = 5
    """Broyden: how often the newest step was shortened."""
    ESTIMATES = 6
    """Broyden: 1 once the scale of the initial inverse was estimated."""


PROGRESS_SHARE = 0.99
"""A residual must fall below this share of the last mark to count as progress."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Termination tables of one solve; every tensor is updated in place by the step ops.

    Whoever changes a status by hand keeps `active` equal to the number of running samples.
    """

    record: Tensor
    counters: Tensor
    active: Tensor

    @property
    def norms(self) -> Tensor:
        """The norms in `record`, [batch, 6]; a view."""
        return self.record[:, : len(Norm)]

    @property
    def trace(self) -> Tensor:
        """The trace in `record`, [batch, max_steps]; a view."""
        return self.record[:, len(Norm) :]

    @classmethod
    def new(cls, batch: int, max_steps: int, device: torch.device) -> Tables:
        """Tables of `batch` running samples that have not been evaluated yet."""
        shape = (batch, len(Norm) + max_steps)
        record = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        counters = torch.zeros((batch, len(Counter)), dtype=torch.int64, device=device)
        active = torch.full((1,), batch, dtype=torch.int64, device=device)
        return cls(record, counters, active)


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² over the last dimension in float64: no float32 state overflows it."""
    return x.double().square().sum(-1)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a line search allows the evaluation at hand, per sample.

    Attributes:
        can_shorten: whether the step that led here can be shortened, boolean [batch].
        accepted: the largest residual norm at which it is not, [batch] float64.
    """

    can_shorten: Tensor
    accepted: Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """Per-sample outcomes of one judgement, boolean [batch]; all False for frozen samples."""

    advance: Tensor
    stop: Tensor
    reject: Tensor
    improved: Tensor
    rejected: Tensor
    backtrack: Tensor


def judge_(
    f_z: Tensor,
    z: Tensor,
    tables: Tables,
    *,
    rtol: float,
    atol: float | Tensor,
    stall_steps: int,
    divergence_factor: float,
    max_rejections: int,
    trial: Trial | None = None,
) -> Verdict:
    """Judge the evaluation f(z) of every running sample and record it in `tables`.

    A sample converges when ‖f(z) − z‖ ≤ atol + rtol ‖f(z)‖. A residual that is not finite, or
    exceeds `divergence_factor` times the first one, is rejected: while `max_rejections` are left
    the sample goes back to its best iterate, after that it has diverged. The first evaluation is
    always kept, so that there is an iterate to return. atol may be one for each sample, [batch].

    With a `trial`, a step whose residual is rejected or above what is accepted is to be shortened
    where it can be; that is no rejection, and needs an evaluation that is left.
    """
    norms, counters, trace = tables.norms, tables.counters, tables.trace
    accum = accumulate_dtype(z.dtype)
    running = counters[:, Counter.STATUS] == Status.RUNNING
    f_accum = f_z.to(accum)
    residual = squared_norm(f_accum - z.to(accum)).sqrt()
    f_norm = squared_norm(f_accum).sqrt()
    finite = residual.isfinite() & f_norm.isfinite()
    step = counters[:, Counter.STEPS].clone()
    first = step == 0
    unmarked = (running & first)[:, None]
    marks = norms[:, : Norm.PROGRESS + 1]
    marks.copy_(torch.where(unmarked, torch.inf, marks))

    rows = running.nonzero().flatten()
    trace[rows, step[rows]] = residual[rows]
    counters[:, Counter.STEPS] += running
    norms[:, Norm.FIRST] = torch.where(running & first, residual, norms[:, Norm.FIRST])

    converged = running & finite & (residual <= atol + rtol * f_norm)
    rejected = running & ~(finite & (residual <= divergence_factor * norms[:, Norm.FIRST]))
    rejected &= ~converged
    better = finite & (residual < norms[:, Norm.BEST])
    improved = running & (first | better | converged)
    record = running & (better | converged)
    norms[:, Norm.BEST] = torch.where(record, residual, norms[:, Norm.BEST])
    progress = running & better & ~converged
    progress &= residual < PROGRESS_SHARE * norms[:, Norm.PROGRESS]
    norms[:, Norm.PROGRESS] = torch.where(progress, residual, norms[:, Norm.PROGRESS])
    counters[:, Counter.PROGRESS_STEP] = torch.where(
        progress, step, counters[:, Counter.PROGRESS_STEP]
    )

    backtrack = torch.zeros_like(running)
    if trial is not None:
        backtrack = running & trial.can_shorten & ~converged & (step + 1 < trace.shape[1])
        backtrack &= rejected | (residual > trial.accepted)
    spent = first | (counters[:, Counter.REJECTIONS] >= max_rejections)
    diverged = rejected & ~backtrack & spent
    exhausted = running & (step + 1 >= trace.shape[1])
    waited = step - counters[:, Counter.PROGRESS_STEP]
    stalled = running & ~rejected & (waited >= stall_steps) & (stall_steps > 0)
    status = counters[:, Counter.STATUS]
    for mask, value in (
        (stalled, Status.STALLED),
        (exhausted, Status.MAX_STEPS),
        (diverged, Status.DIVERGED),
        (converged, Status.CONVERGED),
    ):
        status.masked_fill_(mask, int(value))
    stop = running & (status != Status.RUNNING)
    backtrack &= ~stop
    reject = rejected & ~stop & ~backtrack
    counters[:, Counter.REJECTIONS] += reject
    tables.active.copy_((status == Status.RUNNING).sum())
    advance = running & ~stop & ~reject & ~backtrack
    return Verdict(advance, stop, reject, improved & ~reject, rejected, backtrack)
