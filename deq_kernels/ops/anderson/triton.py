"""The Anderson step in Triton.

Formulas: docs/algebra.md, section 4. Reference: deq_kernels/ops/anderson/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deq_kernels.ops.anderson.reference import dependent_share
from deq_kernels.ops.arguments import steps_of
from deq_kernels.ops.direction_scale import ScaleRange
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.tiles import tile_count
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
from deq_kernels.ops.triton_support.mixing import mixing_weights, slots_by_age
from deq_kernels.ops.triton_support.norms import root, step_norms
from deq_kernels.ops.triton_support.product_form import entry
from deq_kernels.ops.triton_support.stored_rows import add_rows, add_tiles, dot_rows_pair, row_at
from deq_kernels.ops.triton_support.termination import (
    ANY_COUNT,
    COUNT,
    COUNTERS,
    NORMS,
    RUNNING,
    SCALE,
    STEPS,
    can_step,
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

# A row of scratch: ||r||^2, ||f||^2, <t_j, r> for all j, <t_j, t_newest> for all j.
R_SQ = tl.constexpr(0)
F_SQ = tl.constexpr(1)
DOTS = tl.constexpr(2)
# The last row is the decision that the first pass leaves to the second: what to do, how many
# evaluations the window had seen before this one, and the coefficients -gamma_j, by slot.
ORDERS = tl.constexpr(0)
SEEN = tl.constexpr(1)
COEFFICIENTS = tl.constexpr(2)

# Orders, as bits.
KEEP = tl.constexpr(1)  # best_z <- z
RESTORE = tl.constexpr(2)  # z <- best_z
ADVANCE = tl.constexpr(4)  # z <- z + beta r
MIX = tl.constexpr(8)  # ... - sum_j gamma_j delta_j


@triton.jit
def _measure(
    f_tile: tl.tensor,  # [BLOCK]
    z_tile: tl.tensor,  # [BLOCK]
    last_tile: tl.tensor,  # [BLOCK]: the residual of the last evaluation
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart: changes of the residual
    row_stride: tl.tensor,
    change_scale: tl.tensor,  # float64 [1]: what they are stored with
    counters: tl.tensor,  # int64 [COUNTERS]
    sums: tl.tensor,  # float64 [2 + 2 capacity]
    inside: tl.tensor,
    capacity: tl.tensor,
    max_steps: tl.tensor,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    f = load(f_tile, inside, ACCUM, BLOCK)
    r = f - load(z_tile, inside, ACCUM, BLOCK)
    tl.store(sums + R_SQ, square_sum(r))
    tl.store(sums + F_SQ, square_sum(f))
    seen = tl.load(counters + COUNT)
    last = tl.load(counters + STEPS) + 1 == max_steps
    # After the last evaluation, whatever it shows, nothing follows that needs the dots.
    count = tl.where(last, 0, tl.minimum(seen, capacity))
    if count > 0:
        newest = row_at(rows, (seen - 1) % capacity, row_stride, ALIGN)
        scale = tl.load(change_scale).to(ACCUM)
        r *= scale
        stored = rounded(r - scale * load(last_tile, inside, ACCUM, BLOCK), rows)
        store(newest, stored, inside, BLOCK)
        # One thread reads what another has written.
        tl.debug_barrier()
        change = stored.to(ACCUM)
        dots = sums + DOTS
        dot_rows_pair(
            rows,
            row_stride,
            count,
            r,
            change,
            inside,
            dots,
            dots + capacity,
            BLOCK,
            GROUP,
            ALIGN,
        )


@triton.jit
def _weigh(
    partials: tl.tensor,  # float64 [tiles, 2 + 2 capacity]
    decision: tl.tensor,  # float64 [2 + 2 capacity]
    table: tl.tensor,  # float64 [capacity, 2 capacity]
    ridge: tl.tensor,  # lambda
    seen: tl.tensor,  # at least 1
    capacity: tl.tensor,
    tiles: tl.tensor,
    share: tl.float64,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
) -> tl.tensor:
    """Leave the coefficients of the changes in `decision`; returns whether they are of any use.

    Takes the newest Gram column in.
    """
    width = 2 + 2 * capacity
    count = tl.minimum(seen, capacity)
    newest = (seen - 1) % capacity
    dots = partials + DOTS
    b = add_tiles(dots, tiles, width, count, SLOTS, TILES)
    column = add_tiles(dots + capacity, tiles, width, count, SLOTS, TILES)
    j = tl.arange(0, SLOTS)
    tl.store(table + newest * 2 * capacity + j, column, mask=j < count)
    tl.store(table + j.to(tl.int64) * 2 * capacity + newest, column, mask=j < count)

    # From slots to ages.
    slot = slots_by_age(newest, capacity, count, SLOTS)
    used = j < count
    b = tl.where(used, tl.gather(b, slot, 0), 0.0)
    column = tl.where(used, tl.gather(column, slot, 0), 0.0)
    gamma, useful = mixing_weights(
        table,
        slot,
        column,
        b,
        capacity,
        count,
        ridge,
        share,
        SLOTS,
    )
    tl.store(decision + COEFFICIENTS + slot, -gamma, mask=used)
    return useful


@triton.jit
def _conclude(
    f_z: tl.tensor,  # [dim]
    z: tl.tensor,  # [dim]
    partials: tl.tensor,  # float64 [tiles, 2 + 2 capacity]
    decision: tl.tensor,  # float64 [2 + 2 capacity]
    table: tl.tensor,  # float64 [capacity, 2 capacity]
    record: tl.tensor,  # float64 [NORMS + max_steps]
    counters: tl.tensor,  # int64 [COUNTERS]
    active: tl.tensor,  # int64 [1]
    capacity: tl.tensor,
    max_steps: tl.tensor,
    tiles: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    regularization: tl.float64,
    share: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    dim: tl.tensor,
    least_unscaled: tl.float64,
    most_unscaled: tl.float64,
    most_exponent: tl.tensor,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Judge one running sample, and find the weights of its changes."""
    sums = add_tiles(partials, tiles, 2 + 2 * capacity, 2, 2, 512)
    residual, f = step_norms(entry(sums, R_SQ, 2), entry(sums, F_SQ, 2), f_z, z, dim, ACCUM, BLOCK)
    residual_norm = root(residual)
    seen = tl.load(counters + COUNT)
    started = tl.load(counters + STEPS) > 0
    scale = tl.where(started, tl.load(record + SCALE), 1.0)
    status, improved, _rejected, reject = judge(
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
    )
    advance = (status == RUNNING) & (reject == 0)
    orders = tl.where(improved, KEEP, 0) | tl.where(reject, RESTORE, 0)
    orders |= tl.where(advance, ADVANCE, 0)
    exponent = direction_exponent(residual_norm, dim, least_unscaled, most_unscaled, most_exponent)
    scale = tl.where(advance & (seen == 0), power_of_two(exponent), scale)
    if advance & (seen > 0) & (capacity > 0):
        own_scale = residual[1] * scale
        useful = _weigh(
            partials,
            decision,
            table,
            regularization * residual[0] * own_scale * own_scale,
            seen,
            capacity,
            tiles,
            share,
            SLOTS,
            TILES,
        )
        orders |= tl.where(useful, MIX, 0)
    tl.store(decision + ORDERS, orders.to(tl.float64))
    tl.store(decision + SEEN, seen.to(tl.float64))
    tl.store(record + SCALE, scale)
    tl.store(counters + COUNT, tl.where(reject, 0, seen + advance.to(tl.int64)))


@triton.jit
def _mix(
    moved: tl.tensor,  # [BLOCK]: z + beta r
    before: tl.tensor,  # [BLOCK]: z
    step: tl.tensor,  # [BLOCK]: beta r
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart: changes of the image
    row_stride: tl.tensor,
    decision: tl.tensor,  # float64 [2 + 2 capacity]
    inside: tl.tensor,
    capacity: tl.tensor,  # at least 1
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """The next iterate; finishes the newest change, and begins the next one with the correction."""
    seen = tl.load(decision + SEEN).to(tl.int64)
    mixed = (tl.load(decision + ORDERS).to(tl.int32) & MIX) != 0
    if seen > 0:
        # The row holds the correction that was added to the last damped image; from there to the
        # new one it is beta r.
        newest = row_at(rows, (seen - 1) % capacity, row_stride, ALIGN)
        change = load(newest, inside, step.dtype, BLOCK) + step
        store(newest, rounded(change, rows), inside, BLOCK)
    # One thread reads what another has written.
    tl.debug_barrier()
    count = tl.where(mixed, tl.minimum(seen, capacity), 0)
    correction = tl.zeros_like(step)
    a = decision + COEFFICIENTS
    correction = add_rows(correction, rows, row_stride, count, a, inside, BLOCK, GROUP, ALIGN)
    stored = rounded(correction, rows)
    # Nobody overwrites the oldest change before all have read it.
    tl.debug_barrier()
    store(row_at(rows, seen % capacity, row_stride, ALIGN), stored, inside, BLOCK)
    if mixed:
        # Along the correction as stored, so that its change matches the step.
        moved = before + (step + stored.to(step.dtype))
    return moved


@triton.jit
def _apply(
    f_tile: tl.tensor,  # [BLOCK]
    z_tile: tl.tensor,  # [BLOCK]
    best_tile: tl.tensor,  # [BLOCK]
    last_tile: tl.tensor,  # [BLOCK]
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart: changes of the image
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
    if (orders & (KEEP | ADVANCE)) != 0:
        z = tl.load(z_tile + offsets, mask=inside, other=0.0)
        if (orders & KEEP) != 0:
            store(best_tile, z, inside, BLOCK)
        if (orders & ADVANCE) != 0:
            before = z.to(ACCUM)
            f = load(f_tile, inside, ACCUM, BLOCK)
            r = f - before
            beta = option(damping, ACCUM)
            moved = tl.where(beta == 1.0, f, before + beta * r)
            if capacity > 0:
                store(last_tile, rounded(r, last_tile), inside, BLOCK)
                moved = _mix(
                    moved,
                    before,
                    beta * r,
                    rows,
                    row_stride,
                    decision,
                    inside,
                    capacity,
                    BLOCK,
                    GROUP,
                    ALIGN,
                )
            store(z_tile, rounded(moved, z_tile), inside, BLOCK)


@kernel
def _step(
    f_z: tl.tensor,  # [batch, dim], rows f_stride apart
    f_stride: tl.tensor,
    z: tl.tensor,  # [batch, dim]
    best_z: tl.tensor,  # [batch, dim]
    residual_changes: tl.tensor,  # [batch, capacity, dim]
    sample_stride: tl.tensor,
    row_stride: tl.tensor,
    image_changes: tl.tensor,  # [batch, capacity, dim]
    image_sample_stride: tl.tensor,
    image_row_stride: tl.tensor,
    last_residual: tl.tensor,  # [batch, dim]
    algebra: tl.tensor,  # float64 [batch, capacity, 2 capacity]
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
    regularization: tl.float64,
    share: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
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
    last_tile = start_of(last_residual, sample, dim, begin, ALIGN)
    running = can_step(counter, max_steps, ANY_COUNT)

    if PASS == "measure" or PASS == "whole":  # noqa: SIM102 - known to the compiler
        if running:  # known to the device
            _measure(
                f_tile,
                z_tile,
                last_tile,
                start_of(residual_changes, sample, sample_stride, begin, ALIGN),
                row_stride,
                norms + SCALE,
                counter,
                partials + tile * width,
                inside,
                capacity,
                max_steps,
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
                algebra + sample * capacity * 2 * capacity,
                norms,
                counter,
                active,
                capacity,
                max_steps,
                tiles,
                rtol,
                atol,
                regularization,
                share,
                stall_steps,
                divergence_factor,
                dim,
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
            last_tile,
            start_of(image_changes, sample, image_sample_stride, begin, ALIGN),
            image_row_stride,
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
    residual_changes: Tensor,
    image_changes: Tensor,
    last_residual: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    damping: float,
    regularization: float,
    stall_steps: int,
    divergence_factor: float,
) -> None:
    """One Anderson step of every running sample; see `deq_kernels.ops.anderson.step_`."""
    changes = {"residual_changes": residual_changes, "image_changes": image_changes}
    others = {"best_z": best_z, **changes, "last_residual": last_residual, "algebra": algebra}
    tables = {"record": record, "counters": counters, "active": active, "scratch": scratch}
    check_device("z", z, f_z=f_z, **others, **tables)
    capacity, max_steps = residual_changes.shape[1], steps_of(record)
    batch, dim = z.shape
    tiles = tile_count(dim, z.device.type)

    if batch == 0:
        return
    f_stride = stride(f_z, 0)
    strides = stride(residual_changes, 0), stride(residual_changes, 1)
    image_strides = stride(image_changes, 0), stride(image_changes, 1)
    align = alignment(dim, f_stride, *strides, *image_strides)
    cut = Cut.of(dim, tiles, z.dtype, align)
    if dim == 0:  # a sample has a program all the same, and its sums need a row
        scratch = z.new_empty((batch, cut.tiles + 1, 2 + 2 * capacity), dtype=torch.float64)
    share = dependent_share(z.dtype, residual_changes.dtype)
    scales = ScaleRange.of(residual_changes.dtype, accumulate_dtype(z.dtype))
    arguments = (
        *(f_z, f_stride, z, best_z, residual_changes, *strides, image_changes, *image_strides),
        *(last_residual, algebra, record, counters, active, scratch, dim, capacity, max_steps),
        *(cut.tiles, rtol, atol, damping, regularization, share, stall_steps, divergence_factor),
        *(scales.least, scales.most, scales.exponent),
    )
    with device_of(z):
        launch(_step, batch, cut, arguments, table_constants(capacity))


KERNELS: dict[str, Callable[..., Any]] = {"anderson_step_": step_}
