"""Device functions: one tile of the stored rows, several rows in flight at a time.

GROUP rows are loaded together, so that enough bytes are on their way. Rows from `count` on may hold
anything and are never read. Strides are multiples of ALIGN elements.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_at(rows: tl.tensor, j: tl.tensor, row_stride: tl.tensor, ALIGN: tl.constexpr) -> tl.tensor:
    """Where a tile of row j starts; also for a vector of rows."""
    return rows + tl.multiple_of(j.to(tl.int64) * row_stride, ALIGN)


@triton.jit
def load_rows(
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    inside: tl.tensor,  # bool [BLOCK]
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """Rows first ... first + GROUP - 1, [GROUP, BLOCK]; zero from row `count` on."""
    j = tl.minimum(first + tl.arange(0, GROUP), count - 1)
    pointers = row_at(rows, j, row_stride, ALIGN)[:, None] + tl.arange(0, BLOCK)[None, :]
    return tl.load(pointers, mask=inside[None, :], other=0.0).to(ACCUM)


@triton.jit
def dot_rows(
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    count: tl.tensor,
    x: tl.tensor,  # [BLOCK]
    inside: tl.tensor,  # bool [BLOCK]
    dots: tl.tensor,  # float64 [capacity]: receives <row_j, x> for j < count
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    for first in range(0, count, GROUP):
        row = load_rows(rows, row_stride, first, count, inside, x.dtype, BLOCK, GROUP, ALIGN)
        j = first + tl.arange(0, GROUP)
        tl.store(dots + j, tl.sum(row * x[None, :], 1).to(tl.float64), mask=j < count)


@triton.jit
def dot_rows_pair(
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    count: tl.tensor,
    x: tl.tensor,  # [BLOCK]
    y: tl.tensor,  # [BLOCK]
    inside: tl.tensor,  # bool [BLOCK]
    x_dots: tl.tensor,  # float64 [capacity]: receives <row_j, x> for j < count
    y_dots: tl.tensor,  # float64 [capacity]: receives <row_j, y> for j < count
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Both products from one reading of the rows."""
    for first in range(0, count, GROUP):
        row = load_rows(rows, row_stride, first, count, inside, x.dtype, BLOCK, GROUP, ALIGN)
        j = first + tl.arange(0, GROUP)
        tl.store(x_dots + j, tl.sum(row * x[None, :], 1).to(tl.float64), mask=j < count)
        tl.store(y_dots + j, tl.sum(row * y[None, :], 1).to(tl.float64), mask=j < count)


@triton.jit
def add_rows(
    total: tl.tensor,  # [BLOCK]
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    count: tl.tensor,
    coefficients: tl.tensor,  # float64 [capacity]
    inside: tl.tensor,  # bool [BLOCK]
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """total + sum_{j < count} coefficients_j row_j."""
    for first in range(0, count, GROUP):
        row = load_rows(rows, row_stride, first, count, inside, total.dtype, BLOCK, GROUP, ALIGN)
        j = first + tl.arange(0, GROUP)
        factors = tl.load(coefficients + j, mask=j < count, other=0.0).to(total.dtype)
        total += tl.sum(factors[:, None] * row, 0)
    return total


@triton.jit
def add_tiles(
    partials: tl.tensor,  # float64 [tiles, width]: of each row the first `columns` entries
    tiles: tl.tensor,
    width: tl.tensor,
    columns: tl.tensor,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
) -> tl.tensor:
    """The tiles' partial sums added up, [COLUMNS], in an order that depends on `tiles` alone."""
    column = tl.arange(0, COLUMNS)
    total = tl.zeros((TILES, COLUMNS), tl.float64)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        pointers = partials + (tile.to(tl.int64) * width)[:, None] + column[None, :]
        written = (tile < tiles)[:, None] & (column < columns)[None, :]
        total += tl.load(pointers, mask=written, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def move_up(
    rows: tl.tensor,  # [capacity, BLOCK], rows row_stride apart
    row_stride: tl.tensor,
    count: tl.tensor,
    inside: tl.tensor,  # bool [BLOCK]
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Rows 1 ... count - 1 become rows 0 ... count - 2."""
    offsets = tl.arange(0, BLOCK)
    for j in range(1, count):
        to = row_at(rows, tl.full((), j - 1, tl.int64), row_stride, ALIGN)
        row = tl.load(row_at(rows, tl.full((), j, tl.int64), row_stride, ALIGN) + offsets, inside)
        # All threads have read row j, and before it whatever made use of row j - 1.
        tl.debug_barrier()
        tl.store(to + offsets, row, inside)
