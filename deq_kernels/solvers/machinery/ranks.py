"""Solves that take the same number of evaluations on all ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch
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
    group = _group(ranks)

    def largest(count: Tensor) -> Tensor:
        agreed = count.clone()  # the steps go on with this rank's own count
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
        return agreed

    return largest


_compared: WeakKeyDictionary[ProcessGroup, set[int]] = WeakKeyDictionary()
"""Which numbers of steps this process knows all ranks of a group to have had."""


def check_equal_steps(ranks: Ranks, max_steps: int, device: torch.device) -> None:
    """Raise on all ranks unless all solve with the same `max_steps`, before any waits for another.

    One all-reduce, of a number per rank. On a GPU the host waits for it where this process has not
    compared this number of steps before.

    Raises:
        RuntimeError: there is no default process group, and `ranks` asks for it.
        ValueError: the ranks have different numbers.
    """
    group = _group(ranks)
    steps = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
    steps[dist.get_rank(group)] = max_steps
    dist.all_reduce(steps, group=group)
    known = _compared.setdefault(group, set())
    if device.type == "cuda" and max_steps in known:
        return
    of_ranks = steps.tolist()
    if len(set(of_ranks)) > 1:
        values = ", ".join(f"{steps} on rank {rank}" for rank, steps in enumerate(of_ranks))
        raise ValueError(
            f"max_steps must be the same on all ranks of a synchronized solve; got {values}. The "
            "others would wait for the rank with the fewest for ever."
        )
    known.add(max_steps)


def _group(ranks: Ranks) -> ProcessGroup:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "synchronized needs a process group, but there is none. Call "
            "torch.distributed.init_process_group first, or leave synchronized out."
        )
    group = dist.group.WORLD if isinstance(ranks, bool) else ranks
    assert group is not None, "a default group is there once torch.distributed is initialised"
    return group
