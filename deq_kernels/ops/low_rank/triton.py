"""The sum-form low-rank inverse in Triton: product and Sherman-Morrison append.

Formulas: docs/algebra.md, section 2. Reference: deq_kernels/ops/low_rank/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deq_kernels.ops.low_rank.triton_halves import combine, dots, project_out_
from deq_kernels.ops.tiles import tile_count
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
from deq_kernels.ops.triton_support.product import two_pass_product
from deq_kernels.ops.triton_support.product_form import entry
from deq_kernels.ops.triton_support.sherman_morrison import sherman_morrison_scale
from deq_kernels.ops.triton_support.stored_rows import add_rows, add_tiles, dot_rows, row_at
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


def matvec(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, scale: float) -> Tensor:
    """scale · x + Σ_i u_i ⟨v_i, x⟩; see `deq_kernels.ops.low_rank.matvec`.

    A sample whose rank exceeds the rows stored has a NaN product: to raise an error would mean to
    wait for the device.
    """
    check_device("x", x, u=u, v=v, rank=rank)
    return two_pass_product(v, u, None, rank, x, scale, transpose=False)


# A row of partial sums: <s, y>, ||s||^2, ||y||^2, <u_i, s> for all i, <v_i, y> for all i.
S_DOT_Y = tl.constexpr(0)
S_SQ = tl.constexpr(1)
Y_SQ = tl.constexpr(2)
U_DOTS = tl.constexpr(3)
# In the last row, which the passes speak through, 1 / <v, y> and the row that the pair goes to
# come before the sums of the dots.
INVERSE = tl.constexpr(0)
ROW = tl.constexpr(1)


@triton.jit
def _conclude(
    partials: tl.tensor,  # float64 [tiles, width]
    decision: tl.tensor,  # float64 [width]
    rank: tl.tensor,  # int64 [1]
    appended: tl.tensor,  # bool [1]
    scale: tl.float64,
    capacity: tl.tensor,
    tiles: tl.tensor,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Accept or refuse the pair of one sample."""
    width = 2 * capacity + U_DOTS
    row = tl.load(rank)
    fits = (row >= 0) & (row < capacity)
    count = tl.where(fits, row, 0)
    sums = add_tiles(partials, tiles, width, 3, 4, 256)
    u_dot_s = add_tiles(partials + U_DOTS, tiles, width, count, SLOTS, TILES)
    v_dot_y = add_tiles(partials + U_DOTS + capacity, tiles, width, count, SLOTS, TILES)
    inverse = sherman_morrison_scale(
        entry(sums, S_DOT_Y, 4), entry(sums, S_SQ, 4), entry(sums, Y_SQ, 4), scale, u_dot_s, v_dot_y
    )
    accepted = fits & (inverse != 0.0)
    i = tl.arange(0, SLOTS)
    # One thread writes what every thread has read.
    tl.debug_barrier()
    tl.store(decision + INVERSE, tl.where(accepted, inverse, 0.0))
    tl.store(decision + ROW, row.to(tl.float64))
    tl.store(decision + U_DOTS + i, u_dot_s, mask=i < count)
    tl.store(decision + U_DOTS + capacity + i, v_dot_y, mask=i < count)
    tl.store(rank, row + accepted.to(tl.int64))
    tl.store(appended, accepted)


@kernel
def _append(
    u: tl.tensor,  # [batch, capacity, dim]
    u_sample_stride: tl.tensor,
    u_row_stride: tl.tensor,
    v: tl.tensor,  # [batch, capacity, dim]
    v_sample_stride: tl.tensor,
    v_row_stride: tl.tensor,
    rank: tl.tensor,  # int64 [batch]
    s: tl.tensor,  # [batch, dim]
    y: tl.tensor,  # [batch, dim]
    appended: tl.tensor,  # bool [batch]
    scratch: tl.tensor,  # float64 [batch, tiles + 1, width]
    scale: tl.float64,
    dim: tl.tensor,
    capacity: tl.tensor,
    tiles: tl.tensor,
    PASS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    sample, tile, begin, inside = tile_of(program_index(PASS), tiles, dim, PASS, BLOCK, ALIGN)
    width = 2 * capacity + U_DOTS
    partials = scratch + sample * (tiles + 1) * width
    decision = partials + tiles * width
    u_rows = start_of(u, sample, u_sample_stride, begin, ALIGN)
    v_rows = start_of(v, sample, v_sample_stride, begin, ALIGN)
    s_tile = start_of(s, sample, dim, begin, ALIGN)
    y_tile = start_of(y, sample, dim, begin, ALIGN)

    if PASS == "measure" or PASS == "whole":
        step = load(s_tile, inside, ACCUM, BLOCK)
        change = load(y_tile, inside, ACCUM, BLOCK)
        sums = partials + tile * width
        s_dot_y = tl.sum(step.to(tl.float64) * change.to(tl.float64), 0)
        tl.store(sums + S_DOT_Y, s_dot_y)
        tl.store(sums + S_SQ, square_sum(step))
        tl.store(sums + Y_SQ, square_sum(change))
        count = tl.load(rank + sample)
        count = tl.where(count < capacity, count, 0)
        u_dots = sums + U_DOTS
        v_dots = u_dots + capacity
        dot_rows(u_rows, u_row_stride, count, step, inside, u_dots, BLOCK, GROUP, ALIGN)
        dot_rows(v_rows, v_row_stride, count, change, inside, v_dots, BLOCK, GROUP, ALIGN)

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "conclude" or PASS == "whole":
        _conclude(
            partials,
            decision,
            rank + sample,
            appended + sample,
            scale,
            capacity,
            tiles,
            SLOTS,
            TILES,
        )

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "apply" or PASS == "whole":
        inverse = tl.load(decision + INVERSE)
        if inverse != 0.0:
            row = tl.load(decision + ROW).to(tl.int64)
            u_dots = decision + U_DOTS
            v_dots = u_dots + capacity
            factor = option(scale, ACCUM)
            # v = H^T s = scale s + sum_i <u_i, s> v_i
            new_v = factor * load(s_tile, inside, ACCUM, BLOCK)
            new_v = add_rows(new_v, v_rows, v_row_stride, row, u_dots, inside, BLOCK, GROUP, ALIGN)
            store(row_at(v_rows, row, v_row_stride, ALIGN), rounded(new_v, v), inside, BLOCK)
            # u = (s - H y) / <v, y>, H y = scale y + sum_i <v_i, y> u_i
            h_y = factor * load(y_tile, inside, ACCUM, BLOCK)
            h_y = add_rows(h_y, u_rows, u_row_stride, row, v_dots, inside, BLOCK, GROUP, ALIGN)
            new_u = inverse.to(ACCUM) * (load(s_tile, inside, ACCUM, BLOCK) - h_y)
            store(row_at(u_rows, row, u_row_stride, ALIGN), rounded(new_u, u), inside, BLOCK)


def append_(u: Tensor, v: Tensor, rank: Tensor, s: Tensor, y: Tensor, scale: float) -> Tensor:
    """Append v = Hᵀs, u = (s − Hy) / ⟨v, y⟩ in place; see `deq_kernels.ops.low_rank.append_`."""
    check_device("s", s, y=y, u=u, v=v, rank=rank)
    batch, dim = s.shape
    capacity = u.shape[1]

    appended = torch.empty_like(rank, dtype=torch.bool)
    if batch == 0:
        return appended
    u_strides = stride(u, 0), stride(u, 1)
    v_strides = stride(v, 0), stride(v, 1)
    tiles = tile_count(dim, s.device.type)
    cut = Cut.of(dim, tiles, s.dtype, alignment(dim, *u_strides, *v_strides))
    width = U_DOTS.value + 2 * capacity
    scratch = s.new_empty((batch, cut.tiles + 1, width), dtype=torch.float64)
    arguments = (
        *(u, *u_strides, v, *v_strides, rank, s, y, appended, scratch),
        *(scale, dim, capacity, cut.tiles),
    )
    with device_of(s):
        launch(_append, batch, cut, arguments, table_constants(capacity))
    return appended


KERNELS: dict[str, Callable[..., Any]] = {
    "low_rank_matvec": matvec,
    "low_rank_dots": dots,
    "low_rank_combine": combine,
    "low_rank_project_out_": project_out_,
    "low_rank_append_": append_,
}
