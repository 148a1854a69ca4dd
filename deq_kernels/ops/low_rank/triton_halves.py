"""The two halves of the sum-form product in Triton, and Gram–Schmidt, with float64 arithmetic.

Formulas: docs/algebra.md, section 2. Reference: deq_kernels/ops/low_rank/reference.py.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

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
from deq_kernels.ops.triton_support.product import rank_of
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


@kernel
def _dots(
    rows: tl.tensor,  # [batch, capacity, dim]
    sample_stride: tl.tensor,
    row_stride: tl.tensor,
    count: tl.tensor,  # int64 [batch]
    x: tl.tensor,  # [batch, columns, dim]
    dots: tl.tensor,  # float64 [batch, columns, capacity]
    scratch: tl.tensor,  # float64 [batch, columns, tiles, capacity]
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
    known, stored = rank_of(count + sample, None, capacity)
    partials = scratch + column * tiles * capacity

    if PASS == "measure" or PASS == "whole":  # noqa: SIM102 (settled when it is compiled)
        if stored > 0:
            first = start_of(rows, sample, sample_stride, begin, ALIGN)
            right = load(start_of(x, column, dim, begin, ALIGN), inside, ACCUM, BLOCK)
            sums = partials + tile * capacity
            dot_rows(first, row_stride, stored, right, inside, sums, BLOCK, GROUP, ALIGN)

    if PASS == "whole":
        tl.debug_barrier()

    if PASS == "conclude" or PASS == "whole":
        totals = add_tiles(partials, tiles, capacity, stored, SLOTS, TILES)
        i = tl.arange(0, SLOTS)
        totals = tl.where(known < 0, float("nan"), totals)
        tl.store(dots + column * capacity + i, totals, mask=i < capacity)


@kernel
def _combine(
    rows: tl.tensor,  # [batch, capacity, dim]
    sample_stride: tl.tensor,
    row_stride: tl.tensor,
    count: tl.tensor,  # int64 [batch]
    coefficients: tl.tensor,  # float64 [batch, columns, capacity]
    x: tl.tensor,  # [batch, columns, dim]
    y: tl.tensor,  # [batch, columns, dim]
    scale: tl.float64,
    dim: tl.tensor,
    capacity: tl.tensor,
    columns: tl.tensor,
    tiles: tl.tensor,
    PASS: tl.constexpr,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    index = program_index(PASS)
    sample, _, begin, inside = tile_of(index // columns, tiles, dim, PASS, BLOCK, ALIGN)
    column = sample * columns + index % columns
    known, stored = rank_of(count + sample, None, capacity)
    first = start_of(rows, sample, sample_stride, begin, ALIGN)
    factor = option(scale, ACCUM)
    total = tl.zeros((BLOCK,), ACCUM)
    if factor != 0.0:
        total += factor * load(start_of(x, column, dim, begin, ALIGN), inside, ACCUM, BLOCK)
    total = tl.where(known < 0, float("nan"), total)
    weights = coefficients + column * capacity
    total = add_rows(total, first, row_stride, stored, weights, inside, BLOCK, GROUP, ALIGN)
    store(start_of(y, column, dim, begin, ALIGN), rounded(total, y), inside, BLOCK)


def _cut(rows: Tensor, x: Tensor) -> tuple[Cut, tuple[int, int]]:
    """How the samples are cut, and the strides of the rows."""
    dim = x.shape[2]
    strides = stride(rows, 0), stride(rows, 1)
    tiles = tile_count(dim, x.device.type)
    # Cut for the float64 that sums are taken in.
    return Cut.of(dim, tiles, torch.float64, alignment(dim, *strides)), strides


def dots(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    """⟨row_i, x⟩ for i < count, else 0; see `deq_kernels.ops.low_rank.dots`.

    A sample whose count exceeds the rows stored has NaN for every dot: to raise an error would mean
    to wait for the device.
    """
    check_device("x", x, rows=rows, count=count)
    batch, columns, dim = x.shape
    capacity = rows.shape[1]
    out = x.new_empty((batch, columns, capacity), dtype=torch.float64)
    if out.numel() == 0:
        return out
    cut, strides = _cut(rows, x)
    scratch = x.new_empty((batch, columns, cut.tiles, capacity), dtype=torch.float64)
    arguments = rows, *strides, count, x, out, scratch, dim, capacity, columns, cut.tiles
    constants = table_constants(capacity)
    with device_of(x):
        launch(_dots, batch * columns, cut, arguments, constants, passes=("measure", "conclude"))
    return out


def combine(rows: Tensor, count: Tensor, coefficients: Tensor, x: Tensor, scale: float) -> Tensor:
    """scale · x + Σ_{i < count} c_i row_i; see `deq_kernels.ops.low_rank.combine`.

    A sample whose count exceeds the rows stored is NaN.
    """
    check_device("x", x, rows=rows, count=count)
    batch, columns, dim = x.shape
    capacity = rows.shape[1]
    check_device("x", x, coefficients=coefficients)
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    cut, strides = _cut(rows, x)
    arguments = (
        *(rows, *strides, count, coefficients, x, y),
        *(scale, dim, capacity, columns, cut.tiles),
    )
    with device_of(x):
        launch(_combine, batch * columns, cut, arguments, {}, passes=("apply",))
    return y


def project_out_(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    """x ← (I − V Vᵀ)² x; see `deq_kernels.ops.low_rank.project_out_`."""
    first = dots(rows, count, x)
    # Each time with the opposite sign, which needs no other coefficients than the dots.
    once = combine(rows, count, first, x, -1.0)
    x.copy_(combine(rows, count, dots(rows, count, once), once, -1.0))
    return first
