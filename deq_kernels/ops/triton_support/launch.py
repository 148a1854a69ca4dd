"""How the Triton kernels are launched: how samples are cut among programs, and on which device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on CPU tensors: settled as they are defined."""

WHOLE_DIM = 4096
"""Up to this many elements one program takes a whole sample, and an op is one launch."""

SMALLEST_BLOCK = 256
SMALLEST_SLOTS = 16
MOST_ROWS = 8
THREAD_BYTES = 256
"""What a thread loads of stored rows at a time, counted in the type that sums are taken in: enough
to keep memory busy, and few enough for the registers below."""

REGISTERS = {tl.float32: 128, tl.float64: 168}
"""The most registers per thread. Left to itself, ptxas aims at a higher occupancy than loads of
this width need, and spills for it."""

SUMMED_AT_ONCE = 1024
"""Partial sums that a program adds up at a time."""

RUN_TIME = (
    "dim",
    "tiles",
    "columns",
    "capacity",
    "max_steps",
    "stall_steps",
    "finish_inverse",
    "drop_oldest",
    "estimate_gamma",
    "max_backtracks",
    "most_exponent",
    "samples",
    "activation",
    "norm",
    "fixed_steps",
    "weight_stride",
    "bias_stride",
    "scale_stride",
    "transpose",
    "f_stride",
    "vjp_stride",
    "cotangent_stride",
    "sample_stride",
    "row_stride",
    "image_sample_stride",
    "image_row_stride",
    "u_sample_stride",
    "u_row_stride",
    "v_sample_stride",
    "v_row_stride",
)
"""Whole numbers of which no value is compiled in; flags among them are 0 or 1."""


@dataclass(frozen=True)
class Cut:
    """How the samples of a batch are cut among programs.

    A function of sizes and dtypes within one sample alone, and with it the order of every sum: a
    batch's other samples change no bit.

    Attributes:
        tiles: programs per sample; 1 where one program does every pass over it.
        constants: what a streaming kernel is compiled for: ACCUM, the type of sums; BLOCK, elements
            per tile; GROUP, stored rows in flight; ALIGN, elements that every size and stride is a
            multiple of; the number of warps, and of registers.
    """

    tiles: int
    constants: dict[str, Any]

    @staticmethod
    @functools.cache
    def of(dim: int, tiles: int, dtype: torch.dtype, align: int) -> Cut:
        """The cut of `dim` elements of a state dtype, in `tiles` tiles where they are many."""
        if dim <= WHOLE_DIM:
            tiles, block = 1, max(SMALLEST_BLOCK, triton.next_power_of_2(dim))
        else:
            block = triton.next_power_of_2(triton.cdiv(dim, tiles))
        warps = 8 if block > 2048 else 4
        accum = tl.float64 if dtype == torch.float64 else tl.float32
        row_bytes = block * accum.primitive_bitwidth // 8 // (32 * warps)
        group = min(MOST_ROWS, THREAD_BYTES // row_bytes)
        if align == 1:
            group //= 2  # Narrow loads take a register for every address.
        constants = {"ACCUM": accum, "BLOCK": block, "GROUP": group, "ALIGN": align}
        options = {"num_warps": warps, "maxnreg": REGISTERS[accum]}
        return Cut(tiles, {**constants, **options})


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` of a kernel, which compiles no size or stride in.

    What matters of them is said by ALIGN; one binary serves all sizes that share it.
    """
    return triton.jit(do_not_specialize=RUN_TIME)(function)


def launch(
    function: Any,
    samples: int,
    cut: Cut,
    arguments: Sequence[Any],
    constants: dict[str, Any],
    passes: tuple[str, ...] = ("measure", "conclude", "apply"),
) -> None:
    """Launch every pass of a kernel; PASS tells it which it is.

    "measure" and "apply" have a program per tile, "conclude" has one per sample. Where one program
    has all of a sample, the only pass is "whole".
    """
    for name in ("whole",) if cut.tiles == 1 else passes:
        programs = samples if name in ("whole", "conclude") else samples * cut.tiles
        function[(programs,)](*arguments, PASS=name, **constants, **cut.constants)


def alignment(dim: int, *strides: int) -> int:
    """The power of two, at most 8 elements, that divides the size and every stride."""
    return math.gcd(8, dim, *strides)


def stride(tensor: Tensor, dimension: int) -> int:
    """The stride of a dimension; 0 where it has at most one entry and the stride means nothing."""
    return tensor.stride(dimension) if tensor.shape[dimension] > 1 else 0


def table_constants(capacity: int) -> dict[str, int]:
    """What the rank-sized algebra is compiled for: SLOTS for the rows, TILES summed at a time."""
    slots = max(SMALLEST_SLOTS, triton.next_power_of_2(capacity))
    return {"SLOTS": slots, "TILES": max(1, SUMMED_AT_ONCE // slots)}


def check_device(name: str, tensor: Tensor, **others: Tensor) -> None:
    """Raise RuntimeError unless the kernels can run on the tensor, and the others lie beside it."""
    if not tensor.is_cuda and not INTERPRETED:
        raise RuntimeError(
            f"{name} must be on a GPU for the Triton kernels, but is on {tensor.device}; move the "
            "solve to a GPU, or take the native or the reference backend"
        )
    for other_name, other in others.items():
        if other.device != tensor.device:
            raise RuntimeError(
                f"{other_name} must be on the same device as {name}, but is on {other.device} "
                f"instead of {tensor.device}; move it with .to({name}.device)"
            )


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which launches go to the tensor's device, on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
