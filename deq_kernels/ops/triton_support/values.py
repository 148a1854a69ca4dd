"""Device functions: where a tile lies, how its elements are read, and how they are rounded."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def program_index(PASS: tl.constexpr) -> tl.tensor:
    """This program's number; "apply" begins with the tiles that "measure" left in the cache."""
    index = tl.program_id(0)
    if PASS == "apply":
        index = tl.num_programs(0) - 1 - index
    return index


@triton.jit
def tile_of(
    index: tl.tensor,
    tiles: tl.tensor,
    dim: tl.tensor,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tuple:
    """(sample, tile, begin, inside) of the index-th tile of a batch; of a sample in "conclude".

    `begin` is the tile's first element within its sample, `inside` [BLOCK] which of its elements
    exist. Sizes and strides are multiples of ALIGN elements; saying so makes accesses 16 bytes.
    """
    if PASS == "conclude":
        tiles = 1
    sample = (index // tiles).to(tl.int64)
    tile = (index % tiles).to(tl.int64)
    begin = tile * BLOCK
    size = tl.multiple_of(tl.minimum(dim - begin, BLOCK).to(tl.int32), ALIGN)
    return sample, tile, begin, tl.arange(0, BLOCK) < size


@triton.jit
def start_of(
    pointer: tl.tensor,
    sample: tl.tensor,
    stride: tl.tensor,
    begin: tl.tensor,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """Where a tile starts in the storage of its sample."""
    return pointer + tl.multiple_of(sample * stride + begin, ALIGN)


@triton.jit
def load(
    tile: tl.tensor,  # [BLOCK]
    inside: tl.tensor,  # bool [BLOCK]
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """A tile in the type that sums are taken in, zero outside."""
    return tl.load(tile + tl.arange(0, BLOCK), mask=inside, other=0.0).to(ACCUM)


@triton.jit
def store(
    tile: tl.tensor,  # [BLOCK]
    values: tl.tensor,  # [BLOCK], of the type stored
    inside: tl.tensor,  # bool [BLOCK]
    BLOCK: tl.constexpr,
) -> None:
    tl.store(tile + tl.arange(0, BLOCK), values, mask=inside)


@triton.jit
def rounded(x: tl.tensor, pointer: tl.tensor) -> tl.tensor:
    """x in the type that `pointer` stores: to nearest, ties to even, as torch converts.

    To bfloat16 by way of float32, and by the bits: on a GPU a plain conversion would do, but that
    of the interpreter truncates.
    """
    if pointer.dtype.element_ty == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(pointer.dtype.element_ty)


@triton.jit
def square_sum(x: tl.tensor) -> tl.tensor:
    """||x||^2 in float64: no float32 state overflows it."""
    x = x.to(tl.float64)
    return tl.sum(x * x, 0)


@triton.jit
def option(value: tl.float64, dtype: tl.constexpr) -> tl.tensor:
    """An option as a scalar of `dtype`; the interpreter passes it as a number of Python's."""
    return tl.full((), value, dtype)
