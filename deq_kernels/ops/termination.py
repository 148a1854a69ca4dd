"""The per-sample tables of a fixed-point solve, and the stopping rule as PyTorch states it.

The tables are shared by all solver steps (`csrc/algebra/termination.h` names the same columns):

- `record` [batch, 8 + max_steps] float64: the best, first and last progress-marking residual
  norm, what the methods of Broyden and Anderson keep per sample, where ‖f(z)‖ was marked, then the
  trace, the residual norm at each evaluation, NaN where none was;
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
from deq_kernels.ops.norms import norm


class Status(IntEnum):
    """What became of one sample."""

    RUNNING = 0
    CONVERGED = 1
    """‖f(z) − z‖ ≤ atol + rtol ‖f(z)‖ at the returned iterate.

    Where ‖f(z)‖ has doubled since the start, that counts only if the residual has halved since the
    last doubling, or is at most atol: iterates that run away make any tolerance large.
    """
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
    MARKED_IMAGE = 6
    """‖f(z)‖ where it was last marked: at the first evaluation, then whenever it has doubled."""
    MARKED_RESIDUAL = 7
    """The residual norm there; infinite at the first mark."""


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

GROWTH = 2.0
"""‖f(z)‖ has grown where it is above this multiple of the one marked."""

DEMANDED_SHARE = 0.5
"""The share of the marked residual that convergence then demands."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Termination tables of one solve; every tensor is updated in place by the step ops.

    Whoever changes a status by hand keeps `active` equal to the number of running samples.
    """

    record: Tensor
    counters: Tensor
    active: Tensor

    @property
    def status(self) -> Tensor:
        """[batch] int64, values of `Status`; a view."""
        return self.counters[:, Counter.STATUS]

    @property
    def norms(self) -> Tensor:
        """The norms in `record`, [batch, 8]; a view."""
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


def mark_first_(residual: Tensor, f_norm: Tensor, first: Tensor, norms: Tensor) -> None:
    """Record the norms of the first evaluation, of the samples in `first` [batch] bool."""
    for column, value in (
        (Norm.FIRST, residual),
        (Norm.MARKED_IMAGE, f_norm),
        (Norm.MARKED_RESIDUAL, torch.inf),
    ):
        norms[:, column] = torch.where(first, value, norms[:, column])


def meets_tolerance(
    residual: Tensor, f_norm: Tensor, norms: Tensor, *, rtol: float, atol: float | Tensor
) -> Tensor:
    """Which residuals ‖f(z) − z‖ [batch] are within the tolerance, [batch] bool.

    Within it is a residual of at most atol + rtol ‖f(z)‖. Once ‖f(z)‖ has doubled since it was
    first marked, the residual must also be at most atol, or half of the one marked last.
    """
    mark = norms[:, Norm.MARKED_RESIDUAL]
    moved = mark < torch.inf
    marked = torch.where(moved, mark, norms[:, Norm.FIRST])
    trusted = ~(moved | _has_grown(f_norm, norms)) | (residual <= DEMANDED_SHARE * marked)
    return residual <= atol + torch.where(trusted, rtol * f_norm, 0.0)


def follow_growth_(residual: Tensor, f_norm: Tensor, samples: Tensor, norms: Tensor) -> None:
    """Move the mark of `samples` [batch] bool, none of them converged, if ‖f(z)‖ has doubled."""
    moving = samples & _has_grown(f_norm, norms)
    for column, value in ((Norm.MARKED_IMAGE, f_norm), (Norm.MARKED_RESIDUAL, residual)):
        norms[:, column] = torch.where(moving, value, norms[:, column])


def _has_grown(f_norm: Tensor, norms: Tensor) -> Tensor:
    return f_norm > GROWTH * norms[:, Norm.MARKED_IMAGE]


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

    A sample converges when `meets_tolerance` says so; with rtol 0 and an atol below 0 it never
    does, not even at a residual of 0. A residual that is not finite, or exceeds
    `divergence_factor` times the first one, is rejected: while `max_rejections` are left the sample
    goes back to its best iterate, after that it has diverged. The first evaluation is always kept,
    so that there is an iterate to return. atol may be one for each sample, [batch].

    With a `trial`, a step whose residual is rejected or above what is accepted is to be shortened
    where it can be; that is no rejection, and needs an evaluation that is left.
    """
    norms, counters, trace = tables.norms, tables.counters, tables.trace
    accum = accumulate_dtype(z.dtype)
    running = counters[:, Counter.STATUS] == Status.RUNNING
    f_accum = f_z.to(accum)
    residual = norm(f_accum - z.to(accum))
    f_norm = norm(f_accum)
    finite = residual.isfinite() & f_norm.isfinite()
    step = counters[:, Counter.STEPS].clone()
    first = step == 0
    unmarked = (running & first)[:, None]
    marks = norms[:, : Norm.PROGRESS + 1]
    marks.copy_(torch.where(unmarked, torch.inf, marks))

    samples, column = torch.arange(len(z), device=z.device), step.clamp(max=trace.shape[1] - 1)
    trace[samples, column] = torch.where(running, residual, trace[samples, column])
    counters[:, Counter.STEPS] += running
    mark_first_(residual, f_norm, running & first, norms)

    met = meets_tolerance(residual, f_norm, norms, rtol=rtol, atol=atol)
    converged = running & finite & met
    # Infinity times a first residual of 0 is NaN, which nothing exceeds.
    rejected = running & ~(finite & ~(residual > divergence_factor * norms[:, Norm.FIRST]))
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
    follow_growth_(residual, f_norm, running & ~converged & ~rejected & ~backtrack, norms)
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
