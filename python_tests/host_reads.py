"""Finds what would make the host wait for a GPU, on a CPU: reads of a tensor's values.

What a GPU would do is told from the operators alone: those whose result is a number for the host
or has a size that depends on values, and tensors made from numbers of the host, which are copied
over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deq_kernels.gradients import watch
from deq_kernels.solvers.machinery import coupling, loop
from deq_kernels.solvers.machinery.ranks import Ranks
from deq_kernels.solvers.machinery.running import DelayedCount

READS = {
    *(
        "_local_scalar_dense",
        "allclose",
        "equal",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "bincount",
    ),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("_linalg_check_errors", "nonzero_static_out", "histc"),
}
HOST_FUNCTIONS = {
    *(Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__, Tensor.new_tensor),
    *(torch.tensor, torch.as_tensor, torch.from_numpy),
}


class HostReads:
    """Notes every wait of the host in `found`, by name."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._allowed = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch what the block does, its backward passes included."""
        with _Functions(self), _Operators(self):
            yield

    @contextmanager
    def allow(self) -> Iterator[None]:
        """What the block reads is on the host on a GPU, too."""
        self._allowed += 1
        try:
            yield
        finally:
            self._allowed -= 1

    def note(self, name: str) -> None:
        """A wait, unless it is allowed."""
        if not self._allowed:
            self.found.append(name)

    def deliver_counts_late(self, patch: pytest.MonkeyPatch) -> None:
        """Let solves learn of their running samples as on a GPU, a step late, without waiting."""
        for module in (coupling, watch):
            patch.setattr(module, "read_later", lambda numbers, then: None)
        patch.setattr(coupling, "_any_moved", lambda *_: True)
        patch.setattr(watch, "_may_fail", lambda _: True)

        @contextmanager
        def late(active: Tensor, synchronized: Ranks = False) -> Iterator[DelayedCount]:
            yield DelayedCount(active, _Slots(self))

        patch.setattr(loop, "running_count", late)


class _Slots:
    def __init__(self, reads: HostReads) -> None:
        self._reads = reads
        self._slots: dict[int, Tensor] = {}

    def send(self, count: Tensor, slot: int) -> None:
        self._slots[slot] = count.clone()

    def receive(self, slot: int) -> int:
        with self._reads.allow():
            return int(self._slots.pop(slot))


class _Functions(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in HOST_FUNCTIONS:
            self._reads.note(function.__name__)
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = op._schema.name.removeprefix("aten::")
        if name in READS or _takes_a_mask(name, args) or _has_unknown_size(name, kwargs):
            self._reads.note(name)
        return op(*args, **kwargs)


def _takes_a_mask(name: str, args: Any) -> bool:
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    indices = [index for index in args[1] if index is not None]
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def _has_unknown_size(name: str, kwargs: Any) -> bool:
    return name == "repeat_interleave" and kwargs.get("output_size") is None
