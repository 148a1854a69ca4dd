"""y = scale x + sum_j coefficient_j row_j, with coefficients made from dots with x.

The shape of every product with a low-rank inverse, for several right-hand sides at a time; as in
csrc/cpu/product.h. A program takes one tile of one right-hand side. Those that share a tile of the
rows lie next to each other, so that memory is read once for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deq_kernels.ops.tiles import tile_count
from deq_kernels.ops.triton_support.launch import (
    Cut,
    alignment,
    device_of,
    kernel,
    launch,
    stride,
    table_constants,
)
from deq_kernels.ops.triton_support.product_form import matvec_coefficients, rmatvec_coefficients
from deq_kernels.ops.triton_support.stored_rows import add_rows, add_tiles, dot_rows
from deq_kernels.ops.triton_support.values import (
    load,
    option,
    program_index,
    rounded,
    start_of,
    store,
    tile_of,
)


@triton.jit
def rank_of(
    rank: tl.tensor,  # int64 [1]
    algebra: tl.tensor,  # None in sum form
    capacity: tl.tensor,
) -> tl.tuple:
    """(rank, count) of a sample: its factors, and how many stored rows they are made of.

    The rank is -1 where fewer rows are stored. An error would need a wait for the device, so the
    product is NaN instead.
    """
    factors = tl.load(rank)
    count = factors
    if algebra is not None:
        count = tl.where(factors > 0, factors + 1, 0)
    fits = (factors >= 0) & (factors <= capacity) & (count <= capacity)
    return tl.where(fits, factors, -1), tl.where(fits, count, 0)


@triton.jit
def _conclude(
    partials: tl.tensor,  # float64 [tiles, capacity]: <row_j, x> of each tile
    coefficients: tl.tensor,  # float64 [capacity]
    table: tl.tensor,  # float64 [capacity, capacity + 2]; None in sum form
    rank: tl.tensor,
    count: tl.tensor,
    scale: tl.float64,
    transpose: tl.tensor,
    capacity: tl.tensor,
    tiles: tl.tensor,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    q = add_tiles(partials, tiles, capacity, count, SLOTS, TILES)
    if table is not None:
        if transpose != 0:
            q_next = add_tiles(partials + 1, tiles, capacity, count - 1, SLOTS, TILES)
            q = scale * rmatvec_coefficients(q, q_next, table, capacity, rank, SLOTS)
        else:
            q = matvec_coefficients(scale * q, table, capacity, rank, SLOTS)
    j = tl.arange(0, SLOTS)
    tl.store(coefficients + j, q, mask=j < count)


@kernel
def _product(
    dotted: tl.tensor,  # [batch, capacity, dim]: the rows that x is multiplied with
    v_sample_stride: tl.tensor,
    v_row_stride: tl.tensor,
    added: tl.tensor,  # [batch, capacity, dim]: the rows that are added up
    u_sample_stride: tl.tensor,
    u_row_stride: tl.tensor,
    algebra: tl.tensor,  # float64 [batch, capacity, capacity + 2]; None in sum form
    rank: tl.tensor,  # int64 [batch]
    x: tl.tensor,  # [batch, columns, dim]
    y: tl.tensor,  # [batch, columns, dim]
    scratch: tl.tensor,  # float64 [batch, columns, tiles + 1, capacity]
    scale: tl.float64,
    transpose: tl.tensor,
    dim: tl.tensor,
    capacity: tl.tensor,
    columns: tl.tensor,
    tiles: tl.tensor,
    PASS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILES: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    index = program_index(PASS)
    sample, tile, begin, inside = tile_of(index // columns, tiles, dim, PASS, BLOCK, ALIGN)
    column = sample * columns + index % columns
    factors, count = rank_of(rank + sample, algebra, capacity)
    partials = scratch + column * (tiles + 1) * capacity
    coefficients = partials + tiles * capacity
    x_tile = start_of(x, column, dim, begin, ALIGN)

    if PASS == "measure" or PASS == "whole":
        rows = start_of(dotted, sample, v_sample_stride, begin, ALIGN)
        right = load(x_tile, inside, ACCUM, BLOCK)
        dots = partials + tile * capacity
        dot_rows(rows, v_row_stride, count, right, inside, dots, BLOCK, GROUP, ALIGN)

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "conclude" or PASS == "whole":
        table = algebra
        if algebra is not None:
            table += sample * capacity * (capacity + 2)
        _conclude(
            partials,
            coefficients,
            table,
            factors,
            count,
            scale,
            transpose,
            capacity,
            tiles,
            SLOTS,
            TILES,
        )

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "apply" or PASS == "whole":
        rows = start_of(added, sample, u_sample_stride, begin, ALIGN)
        factor = tl.where(factors < 0, float("nan"), option(scale, ACCUM))
        total = factor * load(x_tile, inside, ACCUM, BLOCK)
        total = add_rows(
            total, rows, u_row_stride, count, coefficients, inside, BLOCK, GROUP, ALIGN
        )
        store(start_of(y, column, dim, begin, ALIGN), rounded(total, y), inside, BLOCK)


def two_pass_product(
    dotted: Tensor,
    added: Tensor,
    algebra: Tensor | None,
    rank: Tensor,
    x: Tensor,
    scale: float,
    transpose: bool,
) -> Tensor:
    """The product of checked arguments, [batch, columns, dim].

    Args:
        dotted: rows that x is multiplied with, [batch, capacity, dim].
        added: rows that are added up, [batch, capacity, dim].
        algebra: [batch, capacity, capacity + 2] float64; None in sum form.
        rank: factors of each sample, [batch] int64; where they are made of more rows than there
            are, the sample's product is NaN.
        x: right-hand sides, [batch, columns, dim], contiguous.
        scale: H_0 = scale I.
        transpose: in product form, whether the product is with H^T; the sum form is transposed by
            exchanging its rows.
    """
    y = torch.empty_like(x)
    batch, columns, dim = x.shape
    if y.numel() == 0:
        return y
    capacity = dotted.shape[1]
    v_strides = stride(dotted, 0), stride(dotted, 1)
    u_strides = stride(added, 0), stride(added, 1)
    tiles = tile_count(dim, x.device.type)
    cut = Cut.of(dim, tiles, x.dtype, alignment(dim, *v_strides, *u_strides))
    scratch = x.new_empty((batch, columns, cut.tiles + 1, capacity), dtype=torch.float64)
    arguments = (
        *(dotted, *v_strides, added, *u_strides, algebra, rank, x, y, scratch),
        *(scale, int(transpose), dim, capacity, columns, cut.tiles),
    )
    with device_of(x):
        launch(_product, batch * columns, cut, arguments, table_constants(capacity))
    return y
