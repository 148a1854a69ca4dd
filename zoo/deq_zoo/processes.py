"""Processes that train one model together, each on its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """A group of processes, seen from one of them.

    Attributes:
        rank: of this one.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    def share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch: every `count`-th item."""
        return indices[self.rank :: self.count]

    def average_buffers(self, module: nn.Module) -> None:
        """Replace floating-point buffers, such as running statistics, by their means."""
        if self.count == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.count

    def sum(self, values: Tensor) -> Tensor:
        """Σ over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


ALONE = Processes()
"""No other process."""


@contextmanager
def launched_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, in a group while the block runs; or this one alone.

    The group uses NCCL where the device is a GPU, and gloo elsewhere.

    Args:
        device: "cpu" or "cuda", as the config names it.

    Raises:
        ValueError: the device names one GPU, which several processes cannot share.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    kind = torch.device(device)
    if kind.type == "cuda":
        if ":" in device:
            raise ValueError(
                f"each of {count} processes takes a GPU of its own, but device is {device}; use "
                "cuda"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield Processes(rank=dist.get_rank(), count=count)
    finally:
        dist.destroy_process_group()


class GradientAverage:
    """Means of gradients over processes, which need not have equally many items.

    Σ_r n_r g_r / Σ_r n_r, for gradients g_r of a mean over n_r items: what one process would find
    for the whole batch, were it not for BatchNorm, whose statistics are of each process's share.
    One all-reduce of all gradients together, without waiting for a GPU.

    Args:
        processes: the group.
        parameters: the same ones, in the same order, in every process.
    """

    def __init__(self, processes: Processes, parameters: Iterable[nn.Parameter]) -> None:
        self.processes = processes
        self.parameters = [p for p in parameters if p.requires_grad]
        self.used: list[nn.Parameter] | None = None

    def __call__(self, items: int) -> None:
        """Replace the gradients by their means, in every process.

        Args:
            items: n_r. With 0, gradients need not be there.

        Raises:
            ValueError: the first batch already leaves this process without items.
        """
        if self.processes.count == 1:
            return
        if items:
            self.used = [p for p in self.parameters if p.grad is not None]
        if self.used is None:
            raise ValueError(
                f"the first batch must have an item for each of {self.processes.count} processes, "
                f"got none for process {self.processes.rank}; use a larger batch_size or fewer "
                "processes"
            )
        for parameter in self.used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.used if p.grad is not None]
        count = gradients[0].new_full((1,), float(items))
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), count])
        flat[:-1] *= items
        dist.all_reduce(flat)
        flat /= flat[-1].clone()
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, flat[:-1].split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))
