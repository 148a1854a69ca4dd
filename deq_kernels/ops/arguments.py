"""Argument checks of ops in Python; the same contracts as in csrc/torch/checks.h."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import STATE_DTYPES
from deq_kernels.ops.termination import Counter, Norm, Status

MOST_COUNTED = 2**62
"""Far more of anything than a solve could count."""


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


def check_rows(rows: Tensor, name: str, shape: tuple[int, ...], state: Tensor) -> None:
    """Raise RuntimeError unless these are stored rows [batch, rows, dim] that go with a state."""
    check_shape(rows, name, shape)
    check_dense_rows(rows, name)
    check_history_dtype(rows, state)


def check_product(
    rows: Tensor, name: str, rank: Tensor, x: Tensor, rank_name: str = "rank"
) -> None:
    """Raise RuntimeError unless stored rows, ranks and right-hand sides fit each other."""
    check_dimensions(x, "x", "[batch, columns, dim]")
    check_dimensions(rows, name, "[batch, rows, dim]")
    check_state(x, "x")
    batch, _, dim = x.shape
    check_rows(rows, name, (batch, rows.shape[1], dim), x)
    check_table(rank, rank_name, torch.int64, (batch,))


def check_counts(counts: Tensor, name: str, most: int) -> None:
    """Raise RuntimeError unless every sample's count is at least 0 and at most `most`."""
    outside = ((counts < 0) | (counts > most)).nonzero().flatten()
    if len(outside):
        sample = int(outside[0])
        raise RuntimeError(
            f"{name} of sample {sample} is {int(counts[sample])}, which does not fit the rows "
            "stored"
        )


def check_counters(counters: Tensor, max_steps: int, most: int = MOST_COUNTED) -> None:
    """Raise RuntimeError unless every running sample can count on and has room in its trace.

    Args:
        counters: the termination table.
        max_steps: for which there is room.
        most: the largest count of stored vectors.
    """
    running = counters[:, Counter.STATUS] == Status.RUNNING
    counted = counters[:, Counter.STATUS + 1 :]
    bad = (running[:, None] & ((counted < 0) | (counted > MOST_COUNTED))).nonzero()
    if len(bad):
        sample, column = bad[0].tolist()
        raise RuntimeError(
            f"counters must be at least 0 and at most {MOST_COUNTED} where a sample runs, got "
            f"{int(counted[sample, column])} in column {column + 1} of sample {sample}"
        )
    used_up = (running & (counters[:, Counter.STEPS] >= max_steps)).nonzero().flatten()
    if len(used_up):
        raise RuntimeError(
            f"sample {int(used_up[0])} still runs but has used all {max_steps} steps of its trace"
        )
    count = counters[:, Counter.COUNT]
    crowded = (running & (count > most)).nonzero().flatten()
    if len(crowded):
        raise RuntimeError(
            f"a sample has {int(count[crowded[0]])} directions, but there is room for {most}"
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
