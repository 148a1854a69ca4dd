"""What the steps of all solvers take, checked; the same contract as `check_state` in csrc/torch."""

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
from deq_kernels.ops.termination import Counter, Norm
from deq_kernels.ops.tiles import tile_count


def check_step(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    *,
    sums: int,
) -> None:
    """Raise RuntimeError unless what every solver's step takes fits together.

    Args:
        f_z: dense rows [batch, dim].
        z: the iterates, [batch, dim].
        best_z: [batch, dim].
        record: termination table.
        counters: termination table.
        active: termination table.
        scratch: partial sums, [batch, tiles + 1, sums].
        sums: how many a tile leaves.
    """
    check_dimensions(z, "z", "[batch, dim]")
    check_state(z, "z")
    batch, dim = z.shape
    max_steps = steps_of(record)
    check_shape(f_z, "f_z", (batch, dim))
    check_dtype(f_z, "f_z", z.dtype)
    check_dense_rows(f_z, "f_z")
    check_table(best_z, "best_z", z.dtype, (batch, dim))
    check_table(record, "record", torch.float64, (batch, len(Norm) + max_steps))
    check_table(counters, "counters", torch.int64, (batch, len(Counter)))
    check_table(active, "active", torch.int64, (1,))
    tiles = tile_count(dim, z.device.type)
    check_table(scratch, "scratch", torch.float64, (batch, tiles + 1, sums))
