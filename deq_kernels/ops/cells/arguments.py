"""What the op takes, checked in Python; the same contract as in csrc/torch/arguments.h."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.arguments import (
    check_dense_rows,
    check_dimensions,
    check_dtype,
    check_shape,
    check_state,
    check_table,
    steps_of,
)
from deq_kernels.ops.cells.activations import Activation
from deq_kernels.ops.cells.norms import NormKind
from deq_kernels.ops.termination import Counter, Norm


def check_iterate(
    weight: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    values: Tensor | None,
    sample_ptr: Tensor | None,
    bias: Tensor,
    scale: Tensor | None,
    z: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    activation: int,
    rtol: float,
    atol: float,
    damping: float,
    norm: int,
    stall_steps: int,
    divergence_factor: float,
    fixed_steps: bool,
    accelerate: bool,
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dimensions(z, "z", "[rows, dim]")
    check_state(z, "z")
    (rows, dim), samples = z.shape, len(z)
    max_steps = steps_of(record)
    check_shape(weight, "weight", (dim, dim))
    check_dtype(weight, "weight", z.dtype)
    for name, tensor in (("bias", bias), ("scale", scale)):
        if tensor is not None:
            check_shape(tensor, name, (rows, dim))
            check_dtype(tensor, name, z.dtype)
            check_dense_rows(tensor, name)
    if sample_ptr is not None:
        if sample_ptr.dim() != 1 or len(sample_ptr) == 0:
            raise RuntimeError("sample_ptr must be [samples + 1]")
        samples = len(sample_ptr) - 1
        check_table(sample_ptr, "sample_ptr", torch.int64, (samples + 1,))
    if crow is not None and col is not None and values is not None:
        if sample_ptr is None:
            raise RuntimeError("crow needs sample_ptr: which rows form a sample")
        check_dimensions(values, "values", "[entries]")
        check_table(crow, "crow", torch.int64, (rows + 1,))
        check_table(col, "col", torch.int64, (len(values),))
        check_table(values, "values", z.dtype, (len(values),))
    elif crow is not None or col is not None or values is not None:
        raise RuntimeError("crow, col and values must be given together")
    check_table(record, "record", torch.float64, (samples, len(Norm) + max_steps))
    check_table(counters, "counters", torch.int64, (samples, len(Counter)))
    check_table(active, "active", torch.int64, (1,))
    if not 0 <= activation < len(Activation):
        raise RuntimeError(f"activation must be 0 to {len(Activation) - 1}, got {activation}")
    if not 0 <= norm < len(NormKind):
        raise RuntimeError(f"norm must be 0 to {len(NormKind) - 1}, got {norm}")
    if fixed_steps and accelerate:
        raise RuntimeError("fixed_steps are damped steps; got accelerate too")


def check_structure(
    crow: Tensor | None, col: Tensor | None, sample_ptr: Tensor | None, rows: int
) -> None:
    """Raise RuntimeError unless rows and entries are whose they are said to be."""
    if sample_ptr is not None:
        _check_starts(sample_ptr, "sample_ptr", rows)
    if crow is None or col is None or sample_ptr is None:
        return
    _check_starts(crow, "crow", len(col))
    row_of_entry = torch.arange(rows, device=col.device).repeat_interleave(crow.diff())
    sample_of_row = torch.arange(len(sample_ptr) - 1, device=col.device).repeat_interleave(
        sample_ptr.diff()
    )
    sample = sample_of_row[row_of_entry]
    begin, end = sample_ptr[sample], sample_ptr[sample + 1]
    outside = ((col < begin) | (col >= end)).nonzero().flatten()
    if len(outside):
        e = int(outside[0])
        raise RuntimeError(
            f"col must stay within the rows of sample {int(sample[e])}, {int(begin[e])} to "
            f"{int(end[e])}, got {int(col[e])} at entry {e}"
        )


def _check_starts(starts: Tensor, name: str, end: int) -> None:
    """Raise unless these are ascending from 0 to `end`, one more than there are owners."""
    first, last = int(starts[0]), int(starts[-1])
    if first != 0 or last != end:
        raise RuntimeError(f"{name} must begin with 0 and end with {end}, got {first} and {last}")
    descending = (starts.diff() < 0).nonzero().flatten()
    if len(descending):
        raise RuntimeError(f"{name} must not descend, but does at {int(descending[0]) + 1}")
