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

from deq_kernels.ops.tiles import tile_count
from deq_kernels.ops.triton_support.arguments import (
    check_dense_rows,
    check_dimensions,
    check_dtype,
    check_history_dtype,
    check_shape,
    check_state,
    check_table,
    check_termination,
    steps_of,
)
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
from deq_kernels.ops.triton_support.product import check_product, two_pass_product
from deq_kernels.ops.triton_support.product_form import direction_coefficients, entry
from deq_kernels.ops.triton_support.rows import add_rows, add_tiles, dot_rows_pair, row_at
from deq_kernels.ops.triton_support.termination import (
    COUNT,
    COUNTERS,
    NORMS,
    RUNNING,
    STATUS,
    STEPS,
    judge,
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
# The last row is the decision that the first pass leaves to the second: what to do, the factor of
# r in the next direction, its coefficients, and how many directions they belong to.
ORDERS = tl.constexpr(0)
SCALE = tl.constexpr(1)
COEFFICIENTS = tl.constexpr(2)

# Orders, as bits.
KEEP = tl.constexpr(1)  # best_z <- z
RESTORE = tl.constexpr(2)  # z <- best_z
EXTEND = tl.constexpr(4)  # write the next direction
ADVANCE = tl.constexpr(8)  # z <- z + alpha p


@triton.jit
def _measure(
    f_tile: tl.tensor,  # [BLOCK]
    z_tile: tl.tensor,  # [BLOCK]
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    counters: tl.tensor,  # int64 [COUNTERS]
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
    partials: tl.tensor,  # float64 [tiles, 2 + 2 capacity]
    decision: tl.tensor,  # float64 [2 + 2 capacity]
    table: tl.tensor,  # float64 [capacity, capacity + 2]
    record: tl.tensor,  # float64 [NORMS + max_steps]
    counters: tl.tensor,  # int64 [COUNTERS]
    active: tl.tensor,  # int64 [1]
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
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Judge one running sample, and find the coefficients of its next direction."""
    width = 2 + 2 * capacity
    sums = add_tiles(partials, tiles, width, 2, 2, 512)
    count = tl.load(counters + COUNT)
    status, improved, rejected, reject = judge(
        entry(sums, R_SQ, 2),
        entry(sums, F_SQ, 2),
        record,
        counters,
        active,
        max_steps,
        rtol,
        atol,
        stall_steps,
        divergence_factor,
        MAX_REJECTIONS,
    )
    full = count == capacity
    advance = (status == RUNNING) & (reject == 0)
    # SHINE reads the inverse at the solution: where it is wanted, the last secant pair enters.
    finish = (finish_inverse != 0) & (status != RUNNING) & (rejected == 0)
    extend = advance | (finish & (count > 0) & (full == 0))
    slot = tl.where(advance & full, 0, count)
    scale = option(-1.0, tl.float64)
    if extend:
        if slot > 0:
            dots = partials + DOTS
            q = -gamma * add_tiles(dots, tiles, width, slot, SLOTS, TILES)
            newest = add_tiles(dots + capacity, tiles, width, slot, SLOTS, TILES)
            scale, a = direction_coefficients(q, newest, table, capacity, slot, SLOTS)
            j = tl.arange(0, SLOTS)
            tl.store(decision + COEFFICIENTS + j, a, mask=j < slot)
        tl.store(table + slot * (capacity + 2) + capacity, option(damping, tl.float64))
    orders = tl.where(improved, KEEP, 0) | tl.where(reject, RESTORE, 0)
    orders |= tl.where(extend, EXTEND, 0) | tl.where(advance, ADVANCE, 0)
    tl.store(decision + ORDERS, orders.to(tl.float64))
    tl.store(decision + SCALE, -gamma * scale)
    tl.store(decision + COEFFICIENTS + capacity, slot.to(tl.float64))
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
    damping: tl.float64,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    orders = tl.load(decision + ORDERS).to(tl.int32)
    offsets = tl.arange(0, BLOCK)
    if (orders & RESTORE) != 0:
        tl.store(z_tile + offsets, tl.load(best_tile + offsets, mask=inside), mask=inside)
    if (orders & (KEEP | EXTEND)) != 0:
        z = tl.load(z_tile + offsets, mask=inside, other=0.0)
        if (orders & KEEP) != 0:
            store(best_tile, z, inside, BLOCK)
        if (orders & EXTEND) != 0:
            before = z.to(ACCUM)
            r = load(f_tile, inside, ACCUM, BLOCK) - before
            slot = tl.load(decision + COEFFICIENTS + capacity).to(tl.int64)
            p = tl.load(decision + SCALE).to(ACCUM) * r
            a = decision + COEFFICIENTS
            p = add_rows(p, rows, row_stride, slot, a, inside, BLOCK, GROUP, ALIGN)
            stored = rounded(p, rows)
            store(row_at(rows, slot, row_stride, ALIGN), stored, inside, BLOCK)
            if (orders & ADVANCE) != 0:
                # Along the direction as stored, so that the inverse matches the step.
                moved = before + option(damping, ACCUM) * stored.to(ACCUM)
                store(z_tile, rounded(moved, z_tile), inside, BLOCK)


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
    f_tile = start_of(f_z, sample, f_stride, begin, ALIGN)
    z_tile = start_of(z, sample, dim, begin, ALIGN)
    rows = start_of(directions, sample, sample_stride, begin, ALIGN)
    running = tl.load(counter + STATUS) == RUNNING

    if PASS == "measure" or PASS == "whole":  # noqa: SIM102 - known to the compiler
        if running:  # known to the device
            _measure(
                f_tile,
                z_tile,
                rows,
                row_stride,
                counter,
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
                partials,
                decision,
                algebra + sample * capacity * (capacity + 2),
                record + sample * (max_steps + NORMS),
                counter,
                active,
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
                SLOTS,
                TILES,
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
            damping,
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
) -> None:
    """One Broyden step of every running sample, in place; see `deq_kernels.ops.broyden.step_`."""
    check_dimensions(z, "z", "[batch, dim]")
    check_dimensions(directions, "directions", "[batch, history_length + 1, dim]")
    check_state(z, "z")
    batch, dim = z.shape
    capacity = directions.shape[1]
    if capacity < 1:
        raise RuntimeError("directions must have room for at least one direction, got none")
    max_steps = steps_of(record)
    check_shape(f_z, "f_z", (batch, dim))
    check_dtype(f_z, "f_z", z.dtype)
    check_dense_rows(f_z, "f_z")
    check_table(best_z, "best_z", z.dtype, (batch, dim))
    check_shape(directions, "directions", (batch, capacity, dim))
    check_dense_rows(directions, "directions")
    check_history_dtype(directions, z)
    check_table(algebra, "algebra", torch.float64, (batch, capacity, capacity + 2))
    check_termination(record, counters, active, batch, max_steps)
    tiles = tile_count(dim, z.device.type)
    check_table(scratch, "scratch", torch.float64, (batch, tiles + 1, 2 + 2 * capacity))
    tensors = {"f_z": f_z, "best_z": best_z, "directions": directions, "algebra": algebra}
    tables = {"record": record, "counters": counters, "active": active, "scratch": scratch}
    check_device("z", z, **tensors, **tables)

    if batch == 0:
        return
    f_stride = stride(f_z, 0)
    strides = stride(directions, 0), stride(directions, 1)
    cut = Cut.of(dim, tiles, z.dtype, alignment(dim, f_stride, *strides))
    if dim == 0:  # a sample has a program all the same, and its sums need a row
        scratch = z.new_empty((batch, cut.tiles + 1, 2 + 2 * capacity), dtype=torch.float64)
    arguments = (
        *(f_z, f_stride, z, best_z, directions, *strides, algebra, record, counters, active),
        *(scratch, dim, capacity, max_steps, cut.tiles, rtol, atol, damping, gamma),
        *(stall_steps, divergence_factor, int(finish_inverse)),
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
    check_product(directions, "directions", rank, x)
    batch, capacity, _ = directions.shape
    check_table(algebra, "algebra", torch.float64, (batch, capacity, capacity + 2))
    check_device("x", x, algebra=algebra)
    return two_pass_product(directions, directions, algebra, rank, x, scale, transpose)


KERNELS: dict[str, Callable[..., Any]] = {
    "broyden_step_": step_,
    "broyden_matvec": matvec,
}
