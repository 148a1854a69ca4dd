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
NORMS = tl.constexpr(len(Norm))

STATUS = tl.constexpr(int(Counter.STATUS))
COUNT = tl.constexpr(int(Counter.COUNT))
STEPS = tl.constexpr(int(Counter.STEPS))
REJECTIONS = tl.constexpr(int(Counter.REJECTIONS))
PROGRESS_STEP = tl.constexpr(int(Counter.PROGRESS_STEP))
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

    # From the weakest reason to stop to the strongest.
    stalled = (rejected == 0) & (stall_steps > 0) & (step - marked_step >= stall_steps)
    status = tl.where(stalled, STALLED, RUNNING)
    status = tl.where(step + 1 >= max_steps, MAX_STEPS, status)
    status = tl.where(rejected & (first | (rejections >= max_rejections)), DIVERGED, status)
    status = tl.where(converged, CONVERGED, status)
    reject = rejected & (status == RUNNING)

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
    return status, improved, rejected, reject
