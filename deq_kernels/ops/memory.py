"""Large buffers: how they are asked for."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.ops import registry

HUGE_PAGE_BYTES = 2 << 20


def _no_advice(memory: Tensor) -> None:
    """Memory works without advice."""


_ADVISE = registry.define(
    "advise_huge_pages_(Tensor(a!) memory) -> ()", reference=_no_advice, fake=_no_advice
)


def advise_huge_pages_(memory: Tensor) -> Tensor:
    """Ask for large pages under a buffer that spans several of them; returns it.

    The first touch of a fresh page traps into the operating system, and for a history written once
    per solve those traps cost more than the arithmetic. Contents do not change.
    """
    if memory.device.type == "cpu" and memory.nbytes >= 2 * HUGE_PAGE_BYTES:
        _ADVISE.call(memory)
    return memory
