"""Solves that take the same number of evaluations on all ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Ranks: TypeAlias = "bool | ProcessGroup"
"""True for the default process group, False for this process alone."""


def check_ranks(name: str, value: object) -> None:
    """Raise ValueError unless an option is True, False or a process group."""
    if isinstance(value, bool):
        return
    if not (dist.is_available() and isinstance(value, dist.ProcessGroup)):
        raise ValueError(
            f"{name} must be True, False or a process group that this rank belongs to; got "
            f"{value!r}. Make one with torch.distributed.new_group."
        )


def largest_over(ranks: Ranks) -> Callable[[Tensor], Tensor]:
    """A function from a count [1] to the largest of all ranks, which must all call it.

    Raises:
        RuntimeError: there is no default process group, and `ranks` asks for it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "synchronized needs a process group, but there is none. Call "
            "torch.distributed.init_process_group first, or leave synchronized out."
        )
    group = None if isinstance(ranks, bool) else ranks

    def largest(count: Tensor) -> Tensor:
        agreed = count.clone()  # the steps go on with this rank's own count
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
        return agreed

    return largest
