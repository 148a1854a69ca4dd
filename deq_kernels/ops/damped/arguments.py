"""What the ops take, checked in Python; the same contracts as in csrc/torch/arguments.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops.arguments import (
    check_dense_rows,
    check_dimensions,
    check_dtype,
    check_shape,
    check_state,
    check_table,
)
from deq_kernels.ops.step_arguments import check_step as check_any_step


def check_step(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    *options: Any,
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_any_step(f_z, z, best_z, record, counters, active, scratch, sums=2)


def check_neumann(vjp: Tensor, cotangent: Tensor, w: Tensor, norms: Tensor, damping: float) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dimensions(w, "w", "[batch, dim]")
    check_state(w, "w")
    batch, dim = w.shape
    for name, tensor in (("vjp", vjp), ("cotangent", cotangent)):
        check_shape(tensor, name, (batch, dim))
        check_dtype(tensor, name, w.dtype)
        check_dense_rows(tensor, name)
    check_table(norms, "norms", torch.float64, (batch, 2))
