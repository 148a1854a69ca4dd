"""The stopping rule as a device function; the same rule as in csrc/algebra/termination.h."""

from __future__ import annotations

import triton
import triton.language as tl

from deq_kernels.ops.arguments import MOST_COUNTED
from deq_kernels.ops.termination import (
    DEMANDED_SHARE,
    GROWTH,
    PROGRESS_SHARE,
    Counter,
    Norm,
    Status,
)

INFINITY = tl.constexpr(float("inf"))
SHARE = tl.constexpr(PROGRESS_SHARE)
DOUBLED = tl.constexpr(GROWTH)
HALVED = tl.constexpr(DEMANDED_SHARE)

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
MARKED_IMAGE = tl.constexpr(int(Norm.MARKED_IMAGE))
MARKED_RESIDUAL = tl.constexpr(int(Norm.MARKED_RESIDUAL))
NORMS = tl.constexpr(len(Norm))

STATUS = tl.constexpr(int(Counter.STATUS))
COUNT = tl.constexpr(int(Counter.COUNT))
STEPS = tl.constexpr(int(Counter.STEPS))
REJECTIONS = tl.constexpr(int(Counter.REJECTIONS))
PROGRESS_STEP = tl.constexpr(int(Counter.PROGRESS_STEP))
BACKTRACKS = tl.constexpr(int(Counter.BACKTRACKS))
ESTIMATES = tl.constexpr(int(Counter.ESTIMATES))
COUNTERS = tl.constexpr(len(Counter))


ANY_COUNT = tl.constexpr(MOST_COUNTED)


@triton.jit
def can_step(
    counters: tl.tensor,  # int64 [COUNTERS]
    max_steps: tl.tensor,
    most: tl.tensor,  # the largest count of stored vectors
) -> tl.tensor:
    """Whether a sample runs, with counters that its step can go by.

    A sample whose counters are out of range is skipped: an error would need a wait for the device.
    """
    steps = tl.load(counters + STEPS)
    count = tl.load(counters + COUNT)
    running = tl.load(counters + STATUS) == RUNNING
    return running & (steps >= 0) & (steps < max_steps) & (count >= 0) & (count <= most)


@triton.jit
def judge(
    residual: tl.tensor,  # ||f(z) - z||
    f_norm: tl.tensor,  # ||f(z)||
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
        residual,
        f_norm,
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
        residual,
    )
    return status, improved, rejected, reject


@triton.jit
def judge_trial(
    residual: tl.tensor,
    f_norm: tl.tensor,
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
    step = tl.load(counters + STEPS)
    rejections = tl.load(counters + REJECTIONS)
    finite = (residual < INFINITY) & (f_norm < INFINITY)
    before = (
        tl.load(record + FIRST),
        tl.load(record + BEST),
        tl.load(record + PROGRESS),
        tl.load(counters + PROGRESS_STEP),
        (tl.load(record + MARKED_IMAGE), tl.load(record + MARKED_RESIDUAL)),
    )
    status, after, improved, rejected, reject, backtrack = decide(
        residual,
        f_norm,
        finite,
        step,
        rejections,
        before,
        max_steps,
        rtol,
        atol,
        stall_steps,
        divergence_factor,
        max_rejections,
        can_shorten,
        accepted,
    )

    # One thread writes what every thread has read.
    tl.debug_barrier()
    tl.store(record + NORMS + step, residual)
    tl.store(record + FIRST, after[0])
    tl.store(record + BEST, after[1])
    tl.store(record + PROGRESS, after[2])
    tl.store(record + MARKED_IMAGE, after[4][0])
    tl.store(record + MARKED_RESIDUAL, after[4][1])
    tl.store(counters + STATUS, status.to(tl.int64))
    tl.store(counters + STEPS, step + 1)
    tl.store(counters + REJECTIONS, rejections + reject.to(tl.int64))
    tl.store(counters + PROGRESS_STEP, after[3])
    tl.atomic_add(active, -1, mask=status != RUNNING, sem="relaxed")
    return status, improved, rejected, reject, backtrack


@triton.jit
def meets_tolerance(
    residual: tl.tensor,  # ||f(z) - z||
    f_norm: tl.tensor,  # ||f(z)||
    first_norm: tl.tensor,  # the residual of the first evaluation
    marks: tl.tuple,  # MARKED_IMAGE and MARKED_RESIDUAL
    rtol: tl.float64,
    atol: tl.float64,
) -> tl.tensor:
    """Whether the residual is within the tolerance.

    Once ||f(z)|| has doubled since it was first marked, the residual must also be at most atol, or
    half of the one marked last.
    """
    moved = marks[1] < INFINITY
    grown = f_norm > marks[0] * DOUBLED
    marked = tl.where(moved, marks[1], first_norm)
    trusted = ((moved | grown) == 0) | (residual <= marked * HALVED)
    return residual <= atol + tl.where(trusted, rtol * f_norm, 0.0)


@triton.jit
def follow_growth(
    residual: tl.tensor,
    f_norm: tl.tensor,
    marks: tl.tuple,
    samples: tl.tensor,  # whether the mark may move
) -> tl.tuple:
    """The marks after an evaluation that is not within the tolerance."""
    moving = samples & (f_norm > marks[0] * DOUBLED)
    return tl.where(moving, f_norm, marks[0]), tl.where(moving, residual, marks[1])


@triton.jit
def first_marks(first: tl.tensor, f_norm: tl.tensor, marks: tl.tuple) -> tl.tuple:
    """The marks, set where this is the first evaluation."""
    return tl.where(first, f_norm, marks[0]), tl.where(first, INFINITY, marks[1])


@triton.jit
def decide(
    residual: tl.tensor,  # ||f(z) - z||
    f_norm: tl.tensor,  # ||f(z)||
    finite: tl.tensor,  # whether both are
    step: tl.tensor,  # evaluations before this one
    rejections: tl.tensor,
    before: tl.tuple,  # FIRST, BEST and PROGRESS, the counter PROGRESS_STEP, and the marks
    max_steps: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    max_rejections: tl.constexpr,
    can_shorten: tl.tensor,
    accepted: tl.tensor,
) -> tl.tuple:
    """The rule itself, of one evaluation of a running sample or of a block of them.

    Returns (status, after, improved, rejected, reject, backtrack), with `after` what becomes of
    `before`.
    """
    first = step == 0
    first_norm = tl.where(first, residual, before[0])
    best = tl.where(first, INFINITY, before[1])
    mark = tl.where(first, INFINITY, before[2])

    # Comparisons with NaN are false, and `finite` answers for them.
    marks = first_marks(first, f_norm, before[4])
    converged = finite & meets_tolerance(residual, f_norm, first_norm, marks, rtol, atol)
    # Infinity times a first residual of 0 is NaN, which nothing exceeds.
    acceptable = finite & ((residual > divergence_factor * first_norm) == 0)
    rejected = (converged | acceptable) == 0
    better = finite & (residual < best)
    progressed = better & (converged == 0) & (residual < mark * SHARE)
    marked_step = tl.where(progressed, step, before[3])

    last = step + 1 >= max_steps
    short = rejected | (residual > accepted)
    backtrack = can_shorten & short & (converged == 0) & (last == 0)
    marks = follow_growth(residual, f_norm, marks, acceptable & (converged == 0) & (backtrack == 0))

    # From the weakest reason to stop to the strongest.
    stalled = (rejected == 0) & (stall_steps > 0) & (step - marked_step >= stall_steps)
    status = tl.where(stalled, STALLED, RUNNING)
    status = tl.where(last, MAX_STEPS, status)
    spent = first | (rejections >= max_rejections)
    status = tl.where(rejected & spent & (backtrack == 0), DIVERGED, status)
    status = tl.where(converged, CONVERGED, status)
    backtrack = backtrack & (status == RUNNING)
    reject = rejected & (status == RUNNING) & (backtrack == 0)
    improved = (first | better | converged) & (reject == 0)
    after = (
        first_norm,
        tl.where(better | converged, residual, best),
        tl.where(progressed, residual, mark),
        marked_step,
        marks,
    )
    return status, after, improved, rejected, reject, backtrack
