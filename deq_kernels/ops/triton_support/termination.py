"""The stopping rule as a device function; the same rule as in csrc/algebra/termination.h."""

from __future__ import annotations

import triton
import triton.language as tl

from deq_kernels.ops.termination import PROGRESS_SHARE, Counter, Norm, Status

INFINITY = tl.constexpr(float("inf"))
SHARE = tl.constexpr(PROGRESS_SHARE)

RUNNING = tl.constexpr(int(Status.RUNNING))
CONVERGED = tl.constexpr(int(Status.CONVERGED))
MAX_STEPS = tl.constexpr(int(Status.MAX_STEPS))
STALLED = tl.constexpr(int(Status.STALLED))
DIVERGED = tl.constexpr(int(Status.DIVERGED))

BEST = tl.constexpr(int(Norm.BEST))
FIRST = tl.constexpr(int(Norm.FIRST))
PROGRESS = tl.constexpr(int(Norm.PROGRESS))
BASE = tl.constexpr(int(Norm.BASE))
GAMMA = tl.constexpr(int(Norm.GAMMA))
SCALE = tl.constexpr(int(Norm.SCALE))
NORMS = tl.constexpr(len(Norm))

STATUS = tl.constexpr(int(Counter.STATUS))
COUNT = tl.constexpr(int(Counter.COUNT))
STEPS = tl.constexpr(int(Counter.STEPS))
REJECTIONS = tl.constexpr(int(Counter.REJECTIONS))
PROGRESS_STEP = tl.constexpr(int(Counter.PROGRESS_STEP))
BACKTRACKS = tl.constexpr(int(Counter.BACKTRACKS))
ESTIMATES = tl.constexpr(int(Counter.ESTIMATES))
COUNTERS = tl.constexpr(len(Counter))


@triton.jit
def judge(
    residual_sq: tl.tensor,  # ||f(z) - z||^2
    f_sq: tl.tensor,  # ||f(z)||^2
    record: tl.tensor,  # float64 [NORMS + max_steps]: norms, then the trace
    counters: tl.tensor,  # int64 [COUNTERS]
    active: tl.tensor,  # int64 [1], shared by all samples
    max_steps: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    max_rejections: tl.constexpr,
) -> tl.tuple:
    """Judge the evaluation f(z) of one running sample, and record it.

    Returns (status, improved, rejected, reject): the new status, whether this iterate is the one
    to keep, whether its residual says nothing about the Jacobian, and whether the sample goes on
    from its best iterate.
    """
    status, improved, rejected, reject, _ = judge_trial(
        residual_sq,
        f_sq,
        record,
        counters,
        active,
        max_steps,
        rtol,
        atol,
        stall_steps,
        divergence_factor,
        max_rejections,
        tl.full((), 0, tl.int1),
        residual_sq,
    )
    return status, improved, rejected, reject


@triton.jit
def judge_trial(
    residual_sq: tl.tensor,
    f_sq: tl.tensor,
    record: tl.tensor,
    counters: tl.tensor,
    active: tl.tensor,
    max_steps: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    max_rejections: tl.constexpr,
    can_shorten: tl.tensor,  # whether the step that led here can be shortened
    accepted: tl.tensor,  # the largest residual at which it is not
) -> tl.tuple:
    """The same for a trial of a line search: also returns whether its step is to be shortened."""
    residual = tl.sqrt(residual_sq)
    finite = (residual_sq < INFINITY) & (f_sq < INFINITY)
    step = tl.load(counters + STEPS)
    rejections = tl.load(counters + REJECTIONS)
    first = step == 0
    first_norm = tl.where(first, residual, tl.load(record + FIRST))
    best = tl.where(first, INFINITY, tl.load(record + BEST))
    mark = tl.where(first, INFINITY, tl.load(record + PROGRESS))

    # Comparisons with NaN are false, and `finite` answers for them.
    converged = finite & (residual <= atol + rtol * tl.sqrt(f_sq))
    acceptable = finite & (residual <= divergence_factor * first_norm)
    rejected = (converged | acceptable) == 0
    better = finite & (residual < best)
    progressed = better & (converged == 0) & (residual < mark * SHARE)
    marked_step = tl.where(progressed, step, tl.load(counters + PROGRESS_STEP))

    last = step + 1 >= max_steps
    short = rejected | (residual > accepted)
    backtrack = can_shorten & short & (converged == 0) & (last == 0)

    # From the weakest reason to stop to the strongest.
    stalled = (rejected == 0) & (stall_steps > 0) & (step - marked_step >= stall_steps)
    status = tl.where(stalled, STALLED, RUNNING)
    status = tl.where(last, MAX_STEPS, status)
    spent = first | (rejections >= max_rejections)
    status = tl.where(rejected & spent & (backtrack == 0), DIVERGED, status)
    status = tl.where(converged, CONVERGED, status)
    backtrack = backtrack & (status == RUNNING)
    reject = rejected & (status == RUNNING) & (backtrack == 0)

    # One thread writes what every thread has read.
    tl.debug_barrier()
    tl.store(record + NORMS + step, residual)
    tl.store(record + FIRST, first_norm)
    tl.store(record + BEST, tl.where(better | converged, residual, best))
    tl.store(record + PROGRESS, tl.where(progressed, residual, mark))
    tl.store(counters + STATUS, status.to(tl.int64))
    tl.store(counters + STEPS, step + 1)
    tl.store(counters + REJECTIONS, rejections + reject.to(tl.int64))
    tl.store(counters + PROGRESS_STEP, marked_step)
    tl.atomic_add(active, -1, mask=status != RUNNING, sem="relaxed")
    improved = (first | better | converged) & (reject == 0)
    return status, improved, rejected, reject, backtrack
