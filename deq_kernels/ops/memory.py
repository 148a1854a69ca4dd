"""Memory for solver histories: the one large buffer of a solve."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from deq_kernels import _native
from deq_kernels.ops import registry

POOLED_BYTES = 4 << 20
"""Smaller buffers come from torch's allocator, which keeps them itself."""

ROW_BYTES = 16
"""Rows on a GPU begin at multiples of this, so that every one is read 16 bytes at a time."""


def _check_size(like: Tensor, size: int) -> None:
    if size <= 0:
        raise RuntimeError(f"history_memory must be asked for at least one byte, got {size}")


def _plain_memory(like: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


_MEMORY = registry.define(
    "history_memory(Tensor like, int bytes) -> Tensor",
    reference=_plain_memory,
    check=_check_size,
    fake=_plain_memory,
)


def new_history(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the device of `like`, for the stored vectors of one solve.

    On the CPU a large one is drawn from a pool that keeps freed histories for the next solve
    (never more than were once alive together; `deq_kernels.empty_cache` lets go of them), because
    mapping fresh pages can cost more than the solve. Where torch was told to fill uninitialised
    memory, this memory is torch's own and filled.

    On a GPU torch's allocator keeps freed memory itself. There the result is a view whose rows
    begin at multiples of 16 bytes: the stride between rows may be larger than their length.
    """
    if like.device.type == "cuda":
        *outer, dim = shape
        aligned = ROW_BYTES // dtype.itemsize
        padded = -(-dim // aligned) * aligned
        rows = torch.empty((*outer, padded), dtype=dtype, device=like.device)
        return rows.narrow(-1, 0, dim)
    size = math.prod(shape) * dtype.itemsize
    filled = (
        torch.are_deterministic_algorithms_enabled()
        and torch._C._get_deterministic_fill_uninitialized_memory()
    )
    if like.device.type != "cpu" or size < POOLED_BYTES or filled:
        return torch.empty(shape, dtype=dtype, device=like.device)
    memory: Tensor = _MEMORY.call(like, size)
    return memory.view(dtype).view(shape)


def empty_cache() -> int:
    """Give the memory kept by `new_history` back to the operating system; returns its bytes."""
    path = _native.load_cpu().path
    if path is None:
        return 0
    release = ctypes.CDLL(str(path)).deq_kernels_empty_cache
    release.restype = ctypes.c_int64
    released: int = release()
    return released
