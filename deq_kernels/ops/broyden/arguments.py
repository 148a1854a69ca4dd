"""What the ops take, checked in Python; the same contracts as in csrc/torch/arguments.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_dimensions, check_product, check_rows, check_table
from deq_kernels.ops.step_arguments import check_step as check_any_step


def check_step(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    directions: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    *options: Any,
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_dimensions(directions, "directions", "[batch, history_length + 1, dim]")
    capacity = directions.shape[1]
    if capacity < 1:
        raise RuntimeError("directions must have room for at least one direction, got none")
    tables = (record, counters, active, scratch)
    check_any_step(f_z, z, best_z, *tables, sums=2 + 2 * capacity)
    batch, dim = z.shape
    check_rows(directions, "directions", (batch, capacity, dim), z)
    check_table(algebra, "algebra", torch.float64, (batch, capacity, capacity + 2))


def check_matvec(
    directions: Tensor, algebra: Tensor, rank: Tensor, x: Tensor, *options: Any
) -> None:
    """Raise RuntimeError unless shapes, dtypes and layouts fit together; reads no element."""
    check_product(directions, "directions", rank, x)
    batch, capacity, _ = directions.shape
    check_table(algebra, "algebra", torch.float64, (batch, capacity, capacity + 2))
