"""Argument checks of ops in Python; the same contracts as in csrc/torch/checks.h."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import STATE_DTYPES
from deq_kernels.ops.termination import Norm


def check_dimensions(tensor: Tensor, name: str, shape: str) -> None:
    """Raise RuntimeError unless the tensor has as many dimensions as `shape`, "[batch, dim]"."""
    if tensor.dim() != shape.count(",") + 1:
        raise RuntimeError(f"{name} must be {shape}, got {tensor.dim()} dimensions")


def check_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise RuntimeError unless the tensor has this shape."""
    if tensor.shape == shape:
        return
    if tensor.dim() != len(shape):
        raise RuntimeError(f"{name} must have {len(shape)} dimensions, got {tensor.dim()}")
    for dimension, (got, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        if got != wanted:
            raise RuntimeError(
                f"{name} must have size {wanted} in dimension {dimension}, got {got}"
            )


def check_dtype(tensor: Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise RuntimeError unless the tensor has this dtype."""
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")


def check_contiguous(tensor: Tensor, name: str) -> None:
    """Raise RuntimeError unless the tensor is contiguous."""
    if not tensor.is_contiguous():
        raise RuntimeError(f"{name} must be contiguous; pass {name}.contiguous()")


def check_dense_rows(tensor: Tensor, name: str) -> None:
    """Raise RuntimeError unless the last dimension is dense; other strides are free.

    Without elements any strides will do, and `contiguous` changes none.
    """
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and tensor.numel() > 0:
        raise RuntimeError(f"{name} must be dense in its last dimension; pass {name}.contiguous()")


def check_table(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise RuntimeError unless the tensor is a contiguous table of this dtype and shape."""
    check_shape(tensor, name, shape)
    check_dtype(tensor, name, dtype)
    check_contiguous(tensor, name)


def check_state(tensor: Tensor, name: str) -> None:
    """Raise RuntimeError unless the tensor may be a state, [batch, dim] or with columns."""
    if tensor.dtype not in STATE_DTYPES:
        raise RuntimeError(
            f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}"
        )
    check_contiguous(tensor, name)


def check_history_dtype(history: Tensor, state: Tensor) -> None:
    """Raise RuntimeError unless the history's dtype goes with the state's."""
    if history.dtype not in (state.dtype, torch.bfloat16, torch.float32):
        raise RuntimeError(
            "the history must have the state's dtype, bfloat16 or float32, got "
            f"{history.dtype} for a {state.dtype} state"
        )


def steps_of(record: Tensor) -> int:
    """The max_steps of a record [batch, norms + max_steps]: norms, then the trace.

    Raises:
        RuntimeError: it is no such record.
    """
    if record.dim() != 2 or record.shape[1] <= len(Norm):
        raise RuntimeError(
            f"record must be [batch, {len(Norm)} + max_steps], got {list(record.shape)}"
        )
    return record.shape[1] - len(Norm)
