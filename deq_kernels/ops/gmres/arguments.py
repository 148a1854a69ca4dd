"""What the op takes, checked in Python; the same contract as in csrc/torch/arguments.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_dimensions, check_dtype, check_rows, check_table
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.gmres.table import table_size
from deq_kernels.ops.step_arguments import check_step as check_any_step

SUMS = 4
"""Sums of one evaluation over the state that are no dots with the basis."""


def check_step(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    basis: Tensor,
    start: Tensor,
    start_residual: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    *options: Any,
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dimensions(basis, "basis", "[batch, columns + 1, dim]")
    columns = basis.shape[1] - 1
    if columns < 1:
        raise RuntimeError("basis must have room for at least one column, got none")
    check_any_step(f_z, z, best_z, record, counters, active, scratch, sums=SUMS + columns)
    batch, dim = z.shape
    accum = accumulate_dtype(z.dtype)
    check_rows(basis, "basis", (batch, columns + 1, dim), z)
    check_dtype(basis, "basis", accum)
    check_table(start, "start", accum, (batch, dim))
    check_table(start_residual, "start_residual", accum, (batch, dim))
    check_table(algebra, "algebra", torch.float64, (batch, table_size(columns)))
