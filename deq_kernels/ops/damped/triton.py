"""The damped fixed-point step, and the accumulation of the damped Neumann series, in Triton.

Formulas: docs/algebra.md, section 3. Reference: deq_kernels/ops/damped/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deq_kernels.ops.arguments import steps_of
from deq_kernels.ops.tiles import tile_count
from deq_kernels.ops.triton_support.launch import (
    Cut,
    alignment,
    check_device,
    device_of,
    kernel,
    launch,
    stride,
)
from deq_kernels.ops.triton_support.norms import root, step_norms
from deq_kernels.ops.triton_support.product_form import entry
from deq_kernels.ops.triton_support.stored_rows import add_tiles
from deq_kernels.ops.triton_support.termination import (
    ANY_COUNT,
    COUNTERS,
    NORMS,
    RUNNING,
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

MAX_REJECTIONS = tl.constexpr(0)

# A row of scratch: ||r||^2 and ||f||^2, or ||w_new - w||^2 and ||w_new||^2. The last row of a step
# is the decision that the first pass leaves to the second.
WIDTH = tl.constexpr(2)
KEEP = tl.constexpr(0)  # best_z <- z
ADVANCE = tl.constexpr(1)  # z <- z + damping (f(z) - z)


@triton.jit
def _conclude(
    f_z: tl.tensor,  # [dim]
    z: tl.tensor,  # [dim]
    partials: tl.tensor,  # float64 [tiles, 2]
    decision: tl.tensor,  # float64 [2]
    record: tl.tensor,  # float64 [NORMS + max_steps]
    counters: tl.tensor,  # int64 [COUNTERS]
    active: tl.tensor,  # int64 [1]
    dim: tl.tensor,
    max_steps: tl.tensor,
    tiles: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Judge one running sample."""
    sums = add_tiles(partials, tiles, WIDTH, WIDTH, WIDTH, 512)
    residual, f = step_norms(
        entry(sums, 0, WIDTH), entry(sums, 1, WIDTH), f_z, z, dim, ACCUM, BLOCK
    )
    status, improved, _, _ = judge(
        root(residual),
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
    tl.store(decision + KEEP, improved.to(tl.float64))
    tl.store(decision + ADVANCE, (status == RUNNING).to(tl.float64))


@triton.jit
def _apply(
    f_tile: tl.tensor,  # [BLOCK]
    z_tile: tl.tensor,  # [BLOCK]
    best_tile: tl.tensor,  # [BLOCK]
    decision: tl.tensor,  # float64 [2]
    inside: tl.tensor,
    damping: tl.float64,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    keep = tl.load(decision + KEEP) != 0.0
    advance = tl.load(decision + ADVANCE) != 0.0
    if keep | advance:
        z = tl.load(z_tile + tl.arange(0, BLOCK), mask=inside, other=0.0)
        if keep:
            store(best_tile, z, inside, BLOCK)
        if advance:
            before = z.to(ACCUM)
            f = load(f_tile, inside, ACCUM, BLOCK)
            # A full step lands on f(z) itself, without rounding.
            step = option(damping, ACCUM)
            moved = tl.where(step == 1.0, f, before + step * (f - before))
            store(z_tile, rounded(moved, z_tile), inside, BLOCK)


@kernel
def _step(
    f_z: tl.tensor,  # [batch, dim], rows f_stride apart
    f_stride: tl.tensor,
    z: tl.tensor,  # [batch, dim]
    best_z: tl.tensor,  # [batch, dim]
    record: tl.tensor,  # float64 [batch, NORMS + max_steps]
    counters: tl.tensor,  # int64 [batch, COUNTERS]
    active: tl.tensor,  # int64 [1]
    scratch: tl.tensor,  # float64 [batch, tiles + 1, 2]
    dim: tl.tensor,
    max_steps: tl.tensor,
    tiles: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    damping: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    PASS: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    sample, tile, begin, inside = tile_of(program_index(PASS), tiles, dim, PASS, BLOCK, ALIGN)
    partials = scratch + sample * (tiles + 1) * WIDTH
    decision = partials + tiles * WIDTH
    counter = counters + sample * COUNTERS
    f_tile = start_of(f_z, sample, f_stride, begin, ALIGN)
    z_tile = start_of(z, sample, dim, begin, ALIGN)
    running = can_step(counter, max_steps, ANY_COUNT)

    if PASS == "measure" or PASS == "whole":  # noqa: SIM102 - known to the compiler
        if running:  # known to the device
            f = load(f_tile, inside, ACCUM, BLOCK)
            r = f - load(z_tile, inside, ACCUM, BLOCK)
            tl.store(partials + tile * WIDTH, square_sum(r))
            tl.store(partials + tile * WIDTH + 1, square_sum(f))

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "conclude" or PASS == "whole":
        if running:
            _conclude(
                start_of(f_z, sample, f_stride, 0, ALIGN),
                start_of(z, sample, dim, 0, ALIGN),
                partials,
                decision,
                record + sample * (max_steps + NORMS),
                counter,
                active,
                dim,
                max_steps,
                tiles,
                rtol,
                atol,
                stall_steps,
                divergence_factor,
                ACCUM,
                BLOCK,
            )
        else:
            tl.store(decision + KEEP, 0.0)
            tl.store(decision + ADVANCE, 0.0)

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "apply" or PASS == "whole":
        best_tile = start_of(best_z, sample, dim, begin, ALIGN)
        _apply(f_tile, z_tile, best_tile, decision, inside, damping, ACCUM, BLOCK)


def step_(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    damping: float,
    stall_steps: int,
    divergence_factor: float,
) -> None:
    """z ← z + λ (f(z) − z) for every running sample; see `deq_kernels.ops.damped.step_`."""
    tables = {"record": record, "counters": counters, "active": active, "scratch": scratch}
    check_device("z", z, f_z=f_z, best_z=best_z, **tables)
    max_steps = steps_of(record)
    batch, dim = z.shape
    tiles = tile_count(dim, z.device.type)

    if batch == 0:
        return
    f_stride = stride(f_z, 0)
    cut = Cut.of(dim, tiles, z.dtype, alignment(dim, f_stride))
    if dim == 0:  # a sample has a program all the same, and its sums need a row
        scratch = z.new_empty((batch, cut.tiles + 1, 2), dtype=torch.float64)
    arguments = (
        *(f_z, f_stride, z, best_z, record, counters, active, scratch),
        *(dim, max_steps, cut.tiles, rtol, atol, damping, stall_steps, divergence_factor),
    )
    with device_of(z):
        launch(_step, batch, cut, arguments, {})


@kernel
def _neumann(
    vjp: tl.tensor,  # [batch, dim], rows vjp_stride apart
    vjp_stride: tl.tensor,
    cotangent: tl.tensor,  # [batch, dim], rows cotangent_stride apart
    cotangent_stride: tl.tensor,
    w: tl.tensor,  # [batch, dim]
    norms: tl.tensor,  # float64 [batch, 2]
    scratch: tl.tensor,  # float64 [batch, tiles, 2]
    dim: tl.tensor,
    tiles: tl.tensor,
    damping: tl.float64,
    PASS: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    sample, tile, begin, inside = tile_of(program_index(PASS), tiles, dim, PASS, BLOCK, ALIGN)
    sums = scratch + sample * tiles * WIDTH

    if PASS == "measure" or PASS == "whole":
        w_tile = start_of(w, sample, dim, begin, ALIGN)
        vjp_tile = start_of(vjp, sample, vjp_stride, begin, ALIGN)
        cotangent_tile = start_of(cotangent, sample, cotangent_stride, begin, ALIGN)
        before = load(w_tile, inside, ACCUM, BLOCK)
        target = load(cotangent_tile, inside, ACCUM, BLOCK)
        target += load(vjp_tile, inside, ACCUM, BLOCK)
        change = option(damping, ACCUM) * (target - before)
        updated = before + change
        store(w_tile, rounded(updated, w_tile), inside, BLOCK)
        tl.store(sums + tile * WIDTH, square_sum(change))
        tl.store(sums + tile * WIDTH + 1, square_sum(updated))

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "conclude" or PASS == "whole":
        totals = add_tiles(sums, tiles, WIDTH, WIDTH, WIDTH, 512)
        tl.store(norms + sample * WIDTH + tl.arange(0, WIDTH), tl.sqrt(totals))


def neumann_step_(vjp: Tensor, cotangent: Tensor, w: Tensor, norms: Tensor, damping: float) -> None:
    """w ← λ (ℓ + Jᵀw) + (1 − λ) w; see `deq_kernels.ops.damped.neumann_step_`."""
    check_device("w", w, vjp=vjp, cotangent=cotangent, norms=norms)
    batch, dim = w.shape

    if batch == 0:
        return
    strides = stride(vjp, 0), stride(cotangent, 0)
    tiles = tile_count(dim, w.device.type)
    cut = Cut.of(dim, tiles, w.dtype, alignment(dim, *strides))
    scratch = w.new_empty((batch, cut.tiles, 2), dtype=torch.float64)
    arguments = (
        *(vjp, strides[0], cotangent, strides[1], w, norms, scratch),
        *(dim, cut.tiles, damping),
    )
    with device_of(w):
        launch(_neumann, batch, cut, arguments, {}, passes=("measure", "conclude"))


KERNELS: dict[str, Callable[..., Any]] = {
    "damped_step_": step_,
    "neumann_step_": neumann_step_,
}
