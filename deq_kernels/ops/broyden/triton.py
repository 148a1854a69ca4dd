"""The Broyden step and the products with its inverse in Triton, from one stored vector per step.

Formulas: docs/algebra.md, section 1. Reference: deq_kernels/ops/broyden/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deq_kernels.ops.arguments import steps_of
from deq_kernels.ops.direction_scale import ScaleRange
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.tiles import tile_count
from deq_kernels.ops.triton_support.broyden_options import (
    accepted_residual,
    estimated_gamma,
    shorter_step,
)
from deq_kernels.ops.triton_support.direction_scale import direction_exponent, power_of_two
from deq_kernels.ops.triton_support.launch import (
    Cut,
    alignment,
    check_device,
    device_of,
    kernel,
    launch,
    stride,
    table_constants,
)
from deq_kernels.ops.triton_support.norms import root, step_norms
from deq_kernels.ops.triton_support.product import two_pass_product
from deq_kernels.ops.triton_support.product_form import (
    direction_coefficients,
    drop_factor,
    entry,
)
from deq_kernels.ops.triton_support.stored_rows import (
    add_rows,
    add_tiles,
    dot_rows_pair,
    move_up,
    row_at,
)
from deq_kernels.ops.triton_support.termination import (
    BACKTRACKS,
    BASE,
    COUNT,
    COUNTERS,
    ESTIMATES,
    GAMMA,
    NORMS,
    RUNNING,
    SCALE,
    STEPS,
    can_step,
    judge_trial,
)
from deq_kernels.ops.triton_support.values import (
    load,
    option,
    program_index,
    rounded,
    square_sum,
    start_of,
    store,
    tile_of,
)

MAX_REJECTIONS = tl.constexpr(1)

# A row of scratch: ||r||^2, ||f||^2, <p_j, r> for all j, <p_j, p_newest> for all j.
R_SQ = tl.constexpr(0)
F_SQ = tl.constexpr(1)
DOTS = tl.constexpr(2)
# The last row is the decision that the first pass leaves to the second: what to do and the number
# of directions, the factor of r in the next direction, their coefficients, and the step of z along
# the newest direction as stored.
ORDERS = tl.constexpr(0)
FACTOR = tl.constexpr(1)
COEFFICIENTS = tl.constexpr(2)

# Orders, as bits; the number of directions lies above them.
KEEP = tl.constexpr(1)  # best_z <- z
RESTORE = tl.constexpr(2)  # z <- best_z
EXTEND = tl.constexpr(4)  # write the next direction
MOVE = tl.constexpr(8)  # z <- z + step p, p the newest direction
DROP = tl.constexpr(16)  # the stored directions move up one row, over the oldest
ORDER_BITS = tl.constexpr(5)


@triton.jit
def _measure(
    f_tile: tl.tensor,  # [BLOCK]
    z_tile: tl.tensor,  # [BLOCK]
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    counters: tl.tensor,  # int64 [COUNTERS]
    direction_scale: tl.tensor,  # float64 [1]
    sums: tl.tensor,  # float64 [2 + 2 capacity]
    inside: tl.tensor,
    capacity: tl.tensor,
    max_steps: tl.tensor,
    finish_inverse: tl.tensor,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    f = load(f_tile, inside, ACCUM, BLOCK)
    r = f - load(z_tile, inside, ACCUM, BLOCK)
    tl.store(sums + R_SQ, square_sum(r))
    tl.store(sums + F_SQ, square_sum(f))
    count = tl.load(counters + COUNT)
    last = tl.load(counters + STEPS) + 1 == max_steps
    # The last evaluation is judged, whatever it shows; without the inverse nothing follows it.
    count = tl.where(last & (finish_inverse == 0), 0, count)
    if count > 0:
        newest = load(row_at(rows, count - 1, row_stride, ALIGN), inside, ACCUM, BLOCK)
        r *= tl.load(direction_scale).to(ACCUM)
        dots = sums + DOTS
        dot_rows_pair(
            rows,
            row_stride,
            count,
            r,
            newest,
            inside,
            dots,
            dots + capacity,
            BLOCK,
            GROUP,
            ALIGN,
        )


@triton.jit
def _conclude(
    f_z: tl.tensor,  # [dim]
    z: tl.tensor,  # [dim]
    partials: tl.tensor,  # float64 [tiles, 2 + 2 capacity]
    decision: tl.tensor,  # float64 [2 + 2 capacity]
    table: tl.tensor,  # float64 [capacity, capacity + 2]
    record: tl.tensor,  # float64 [NORMS + max_steps]
    counters: tl.tensor,  # int64 [COUNTERS]
    active: tl.tensor,  # int64 [1]
    dim: tl.tensor,
    capacity: tl.tensor,
    max_steps: tl.tensor,
    tiles: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    damping: tl.float64,
    gamma: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    finish_inverse: tl.tensor,
    drop_oldest: tl.tensor,
    estimate_gamma: tl.tensor,
    max_backtracks: tl.tensor,
    least_unscaled: tl.float64,
    most_unscaled: tl.float64,
    most_exponent: tl.tensor,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Judge one running sample, and find the coefficients of its next direction."""
    width = 2 + 2 * capacity
    dots = partials + DOTS
    sums = add_tiles(partials, tiles, width, 2, 2, 512)
    residual, f = step_norms(entry(sums, R_SQ, 2), entry(sums, F_SQ, 2), f_z, z, dim, ACCUM, BLOCK)
    residual_norm = root(residual)
    count = tl.load(counters + COUNT)
    steps = tl.load(counters + STEPS)
    backtracks = tl.load(counters + BACKTRACKS)
    estimates = tl.load(counters + ESTIMATES)
    base = tl.load(record + BASE)
    h_0 = tl.where(steps == 0, option(gamma, tl.float64), tl.load(record + GAMMA))
    scale = tl.where(steps == 0, option(1.0, tl.float64), tl.load(record + SCALE))
    newest_step = table + (count - 1) * (capacity + 2) + capacity
    step = tl.load(newest_step, mask=count > 0, other=1.0)
    status, improved, rejected, reject, backtrack = judge_trial(
        residual_norm,
        root(f),
        record,
        counters,
        active,
        max_steps,
        rtol,
        atol,
        stall_steps,
        divergence_factor,
        MAX_REJECTIONS,
        (count > 0) & (backtracks < max_backtracks),
        accepted_residual(base, step, steps),
    )
    drops = (drop_oldest != 0) & (capacity > 1)
    full = count == capacity
    advance = (status == RUNNING) & (reject == 0) & (backtrack == 0)
    # SHINE reads the inverse at the solution: where it is wanted, the last secant pair enters.
    finish = (finish_inverse != 0) & (status != RUNNING) & (rejected == 0)
    extend = advance | (finish & (count > 0) & ((full == 0) | drops))
    drop = (extend & full & drops).to(tl.int64)
    slot = tl.where(advance & full & (drops == 0), 0, count - drop)
    estimating = (estimate_gamma != 0) & advance & (count == 1) & (estimates == 0)
    if estimating:
        pi = entry(add_tiles(dots, tiles, width, 1, 2, 512), 0, 2)
        norm_sq = entry(add_tiles(dots + capacity, tiles, width, 1, 2, 512), 0, 2)
        own_scale = residual[1] * scale
        found = estimated_gamma(h_0, step, pi, norm_sq, residual[0] * own_scale * own_scale)
        slot = tl.where(found != h_0, 0, slot)
        h_0 = found
    exponent = direction_exponent(residual_norm, dim, least_unscaled, most_unscaled, most_exponent)
    scale = tl.where(advance & (slot == 0), power_of_two(exponent), scale)
    factor = option(-1.0, tl.float64)
    if extend:
        if drop != 0:
            drop_factor(table, capacity, SLOTS)
            tl.store(decision + COEFFICIENTS, 0.0)
        if slot > 0:
            q = -h_0 * add_tiles(dots + drop, tiles, width, slot, SLOTS, TILES)
            newest = add_tiles(dots + drop + capacity, tiles, width, slot, SLOTS, TILES)
            factor, a = direction_coefficients(q, newest, table, capacity, slot, SLOTS)
            j = tl.arange(0, SLOTS)
            tl.store(decision + COEFFICIENTS + drop + j, a, mask=j < slot)
        tl.store(table + slot * (capacity + 2) + capacity, option(damping, tl.float64))
    move = option(damping, tl.float64) / scale
    if backtrack:
        shorter = shorter_step(base, step, residual_norm)
        tl.store(newest_step, shorter)
        move = (shorter - step) / scale
    orders = tl.where(improved, KEEP, 0) | tl.where(reject, RESTORE, 0)
    orders |= tl.where(extend, EXTEND, 0) | tl.where(advance | backtrack, MOVE, 0)
    orders |= tl.where(drop != 0, DROP, 0)
    orders = orders.to(tl.int64) + ((slot + drop) << ORDER_BITS)
    tl.store(decision + ORDERS, orders.to(tl.float64))
    tl.store(decision + FACTOR, -h_0 * factor * scale)
    tl.store(decision + COEFFICIENTS + capacity, move)
    tl.store(record + GAMMA, h_0)
    tl.store(record + SCALE, scale)
    tl.store(record + BASE, tl.where(advance, residual_norm, base))
    shortened = tl.where(advance | reject, 0, backtracks + backtrack.to(tl.int64))
    tl.store(counters + BACKTRACKS, shortened)
    tl.store(counters + ESTIMATES, estimates + estimating.to(tl.int64))
    tl.store(counters + COUNT, tl.where(reject, 0, slot + extend.to(tl.int64)))


@triton.jit
def _apply(
    f_tile: tl.tensor,  # [BLOCK]
    z_tile: tl.tensor,  # [BLOCK]
    best_tile: tl.tensor,  # [BLOCK]
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    decision: tl.tensor,  # float64 [2 + 2 capacity]
    inside: tl.tensor,
    capacity: tl.tensor,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    orders = tl.load(decision + ORDERS).to(tl.int64)
    count = orders >> ORDER_BITS
    step = tl.load(decision + COEFFICIENTS + capacity).to(ACCUM)
    offsets = tl.arange(0, BLOCK)
    if (orders & RESTORE) != 0:
        tl.store(z_tile + offsets, tl.load(best_tile + offsets, mask=inside), mask=inside)
    if (orders & (KEEP | EXTEND | MOVE)) != 0:
        z = tl.load(z_tile + offsets, mask=inside, other=0.0)
        if (orders & KEEP) != 0:
            store(best_tile, z, inside, BLOCK)
        before = z.to(ACCUM)
        if (orders & EXTEND) != 0:
            r = load(f_tile, inside, ACCUM, BLOCK) - before
            p = tl.load(decision + FACTOR).to(ACCUM) * r
            a = decision + COEFFICIENTS
            p = add_rows(p, rows, row_stride, count, a, inside, BLOCK, GROUP, ALIGN)
            if (orders & DROP) != 0:
                move_up(rows, row_stride, count, inside, BLOCK, ALIGN)
                count -= 1
            stored = rounded(p, rows)
            store(row_at(rows, count, row_stride, ALIGN), stored, inside, BLOCK)
            if (orders & MOVE) != 0:
                # Along the direction as stored, so that the inverse matches the step.
                moved = before + step * stored.to(ACCUM)
                store(z_tile, rounded(moved, z_tile), inside, BLOCK)
        elif (orders & MOVE) != 0:
            newest = load(row_at(rows, count - 1, row_stride, ALIGN), inside, ACCUM, BLOCK)
            store(z_tile, rounded(before + step * newest, z_tile), inside, BLOCK)


@kernel
def _step(
    f_z: tl.tensor,  # [batch, dim], rows f_stride apart
    f_stride: tl.tensor,
    z: tl.tensor,  # [batch, dim]
    best_z: tl.tensor,  # [batch, dim]
    directions: tl.tensor,  # [batch, capacity, dim]
    sample_stride: tl.tensor,
    row_stride: tl.tensor,
    algebra: tl.tensor,  # float64 [batch, capacity, capacity + 2]
    record: tl.tensor,  # float64 [batch, NORMS + max_steps]
    counters: tl.tensor,  # int64 [batch, COUNTERS]
    active: tl.tensor,  # int64 [1]
    scratch: tl.tensor,  # float64 [batch, scratch_rows, 2 + 2 capacity]
    dim: tl.tensor,
    capacity: tl.tensor,
    max_steps: tl.tensor,
    tiles: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    damping: tl.float64,
    gamma: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    finish_inverse: tl.tensor,
    drop_oldest: tl.tensor,
    estimate_gamma: tl.tensor,
    max_backtracks: tl.tensor,
    least_unscaled: tl.float64,
    most_unscaled: tl.float64,
    most_exponent: tl.tensor,
    PASS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    sample, tile, begin, inside = tile_of(program_index(PASS), tiles, dim, PASS, BLOCK, ALIGN)
    width = 2 + 2 * capacity
    partials = scratch + sample * (tiles + 1) * width
    decision = partials + tiles * width
    counter = counters + sample * COUNTERS
    norms = record + sample * (max_steps + NORMS)
    f_tile = start_of(f_z, sample, f_stride, begin, ALIGN)
    z_tile = start_of(z, sample, dim, begin, ALIGN)
    rows = start_of(directions, sample, sample_stride, begin, ALIGN)
    running = can_step(counter, max_steps, capacity)

    if PASS == "measure" or PASS == "whole":  # noqa: SIM102 - known to the compiler
        if running:  # known to the device
            _measure(
                f_tile,
                z_tile,
                rows,
                row_stride,
                counter,
                norms + SCALE,
                partials + tile * width,
                inside,
                capacity,
                max_steps,
                finish_inverse,
                ACCUM,
                BLOCK,
                GROUP,
                ALIGN,
            )

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "conclude" or PASS == "whole":
        if running:
            _conclude(
                start_of(f_z, sample, f_stride, 0, ALIGN),
                start_of(z, sample, dim, 0, ALIGN),
                partials,
                decision,
                algebra + sample * capacity * (capacity + 2),
                norms,
                counter,
                active,
                dim,
                capacity,
                max_steps,
                tiles,
                rtol,
                atol,
                damping,
                gamma,
                stall_steps,
                divergence_factor,
                finish_inverse,
                drop_oldest,
                estimate_gamma,
                max_backtracks,
                least_unscaled,
                most_unscaled,
                most_exponent,
                SLOTS,
                TILES,
                ACCUM,
                BLOCK,
            )
        else:
            tl.store(decision + ORDERS, 0.0)

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "apply" or PASS == "whole":
        _apply(
            f_tile,
            z_tile,
            start_of(best_z, sample, dim, begin, ALIGN),
            rows,
            row_stride,
            decision,
            inside,
            capacity,
            ACCUM,
            BLOCK,
            GROUP,
            ALIGN,
        )


def step_(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    directions: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    damping: float,
    gamma: float,
    stall_steps: int,
    divergence_factor: float,
    finish_inverse: bool,
    drop_oldest: bool,
    estimate_gamma: bool,
    max_backtracks: int,
) -> None:
    """One Broyden step of every running sample, in place; see `deq_kernels.ops.broyden.step_`."""
    tables = {"record": record, "counters": counters, "active": active, "scratch": scratch}
    others = {"best_z": best_z, "directions": directions, "algebra": algebra}
    check_device("z", z, f_z=f_z, **others, **tables)
    capacity, max_steps = directions.shape[1], steps_of(record)
    batch, dim = z.shape
    tiles = tile_count(dim, z.device.type)

    if batch == 0:
        return
    f_stride = stride(f_z, 0)
    strides = stride(directions, 0), stride(directions, 1)
    cut = Cut.of(dim, tiles, z.dtype, alignment(dim, f_stride, *strides))
    if dim == 0:  # a sample has a program all the same, and its sums need a row
        scratch = z.new_empty((batch, cut.tiles + 1, 2 + 2 * capacity), dtype=torch.float64)
    scales = ScaleRange.of(directions.dtype, accumulate_dtype(z.dtype))
    arguments = (
        *(f_z, f_stride, z, best_z, directions, *strides, algebra, record, counters, active),
        *(scratch, dim, capacity, max_steps, cut.tiles, rtol, atol, damping, gamma),
        *(stall_steps, divergence_factor, int(finish_inverse), int(drop_oldest)),
        *(int(estimate_gamma), max_backtracks, scales.least, scales.most, scales.exponent),
    )
    with device_of(z):
        launch(_step, batch, cut, arguments, table_constants(capacity))


def matvec(
    directions: Tensor, algebra: Tensor, rank: Tensor, x: Tensor, scale: float, transpose: bool
) -> Tensor:
    """H x, or Hᵀ x, for x [batch, columns, dim]; see `deq_kernels.ops.broyden.matvec`.

    A sample whose rank needs more directions than are stored has a NaN product: to raise an error
    would mean to wait for the device.
    """
    check_device("x", x, directions=directions, algebra=algebra, rank=rank)
    return two_pass_product(directions, directions, algebra, rank, x, scale, transpose)


KERNELS: dict[str, Callable[..., Any]] = {
    "broyden_step_": step_,
    "broyden_matvec": matvec,
}
