"""How a solver's loop learns that no sample runs any more.

The step ops leave the number of running samples in `Tables.active`. On the CPU it is read at once.
On a GPU reading it would make the host wait for the step it has just enqueued, and the device then
wait for the host: the count is copied to pinned memory instead, and the copy is read one step
later, when it has long arrived or the device has the next step to work on meanwhile. The solve
therefore evaluates f once more after all samples have stopped, which changes nothing, since stopped
samples are skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from deq_kernels.solvers.machinery.ranks import Ranks, largest_over

Agree = Callable[[Tensor], Tensor]
"""From this process's count [1] to the one to go by."""


def own_count(count: Tensor) -> Tensor:
    """The count of a solve that no other process waits for."""
    return count


class CurrentCount:
    """Reads the count of the step just taken: on the CPU."""

    def __init__(self, active: Tensor, agree: Agree = own_count) -> None:
        self._active = active
        self._agree = agree

    def left(self) -> int:
        """How many samples still run, at most; once it is 0, a further step changes nothing."""
        return int(self._agree(self._active).item())


class PinnedCounts:
    """Carries counts to the host through two slots of pinned memory, each with an event."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        pinned = torch.zeros((2, 1), dtype=torch.int64, device="cpu", pin_memory=True)
        self._slots = pinned.unbind()
        self._events = (torch.cuda.Event(), torch.cuda.Event())

    def follow_earlier_use(self) -> None:
        """Let the current stream's copies come after those that an earlier solve left under way."""
        stream = torch.cuda.current_stream(self._device)
        for event in self._events:
            if not event.query():
                stream.wait_event(event)

    def send(self, count: Tensor, slot: int) -> None:
        """Enqueue a copy of `count` [1] to a slot; does not wait."""
        self._slots[slot].copy_(count, non_blocking=True)
        self._events[slot].record(torch.cuda.current_stream(self._device))

    def receive(self, slot: int) -> int:
        """The count in a slot, once it has arrived."""
        self._events[slot].synchronize()
        return int(self._slots[slot].item())


class DelayedCount:
    """Sends the count of the step just taken, and reads that of the step before."""

    def __init__(self, active: Tensor, slots: PinnedCounts, agree: Agree = own_count) -> None:
        self._active = active
        self._slots = slots
        self._agree = agree
        self._sent = 0

    def left(self) -> int | None:
        """The same one step ago; None after the first step."""
        # A slot is used again only after it was read, so every count is read as it was sent and
        # the number of evaluations does not depend on timing.
        self._slots.send(self._agree(self._active), self._sent % 2)
        self._sent += 1
        return self._slots.receive(self._sent % 2) if self._sent > 1 else None


RunningCount: TypeAlias = CurrentCount | DelayedCount
"""What the loop asks after each step."""

_idle: dict[torch.device, deque[PinnedCounts]] = {}
"""Slots that no solve uses now. Pinned memory is slow to allocate, so they are kept; there are
never more than solves were once under way together."""


@contextmanager
def _pinned_counts(device: torch.device) -> Iterator[PinnedCounts]:
    idle = _idle.setdefault(device, deque())
    try:
        slots = idle.pop()
    except IndexError:  # none is idle; a thread may have taken the last one just now
        slots = PinnedCounts(device)
    slots.follow_earlier_use()
    try:
        yield slots
    finally:
        idle.append(slots)


@contextmanager
def running_count(active: Tensor, synchronized: Ranks = False) -> Iterator[RunningCount]:
    """The way to learn of the running samples that suits the device of `active` [1].

    Args:
        active: this process's count, which is only read.
        synchronized: the processes that go by the largest of their counts, so that all of them
            take the same number of steps.

    Raises:
        RuntimeError: the current stream is being captured into a CUDA graph, or there is no process
            group to synchronise with.
    """
    agree = own_count if synchronized is False else largest_over(synchronized)
    if active.device.type != "cuda":
        yield CurrentCount(active, agree)
        return
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "A solve reads on the host how many samples still run, which a CUDA graph cannot hold, "
            "but the current stream is being captured. Solve outside the capture; cuda_graph=True "
            "makes the solver capture its own steps."
        )
    with _pinned_counts(active.device) as slots:
        yield DelayedCount(active, slots, agree)
