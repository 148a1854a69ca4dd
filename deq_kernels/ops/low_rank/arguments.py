"""What the ops take, checked in Python; the same contracts as in csrc/torch/arguments.h."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.arguments import (
    check_dimensions,
    check_dtype,
    check_product,
    check_rows,
    check_state,
    check_table,
)


def check_matvec(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, scale: float) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_product(v, "v", rank, x)
    check_rows(u, "u", tuple(v.shape), x)
    check_dtype(u, "u", v.dtype)


def check_dots(rows: Tensor, count: Tensor, x: Tensor) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_product(rows, "rows", count, x, "count")


def check_combine(
    rows: Tensor, count: Tensor, coefficients: Tensor, x: Tensor, scale: float
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dots(rows, count, x)
    batch, columns, _ = x.shape
    shape = (batch, columns, rows.shape[1])
    check_table(coefficients, "coefficients", torch.float64, shape)


def check_append(u: Tensor, v: Tensor, rank: Tensor, s: Tensor, y: Tensor, scale: float) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dimensions(s, "s", "[batch, dim]")
    check_dimensions(u, "u", "[batch, history_length, dim]")
    check_state(s, "s")
    batch, dim = s.shape
    shape = (batch, u.shape[1], dim)
    check_table(y, "y", s.dtype, (batch, dim))
    check_rows(u, "u", shape, s)
    check_rows(v, "v", shape, s)
    check_dtype(v, "v", u.dtype)
    check_table(rank, "rank", torch.int64, (batch,))
