"""What the op takes, checked in Python; the same contract as in csrc/torch/arguments.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_dimensions, check_dtype, check_rows, check_table
from deq_kernels.ops.step_arguments import check_step as check_any_step


def check_step(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    residual_changes: Tensor,
    image_changes: Tensor,
    last_residual: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    *options: Any,
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dimensions(residual_changes, "residual_changes", "[batch, history_length - 1, dim]")
    capacity = residual_changes.shape[1]
    tables = (record, counters, active, scratch)
    check_any_step(f_z, z, best_z, *tables, sums=2 + 2 * capacity)
    shape = (len(z), capacity, z.shape[1])
    check_rows(residual_changes, "residual_changes", shape, z)
    check_rows(image_changes, "image_changes", shape, z)
    check_dtype(image_changes, "image_changes", residual_changes.dtype)
    check_table(last_residual, "last_residual", z.dtype, tuple(z.shape))
    check_table(algebra, "algebra", torch.float64, (len(z), capacity, 2 * capacity))
