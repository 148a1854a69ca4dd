"""Numbers that a device computes and the host looks at when they have arrived, without waiting."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Then = Callable[[list[float]], None]
"""Called on the host with the numbers."""


class PinnedCopy:
    """Numbers on their way to pinned memory, with the event that says when they have arrived."""

    def __init__(self, numbers: Tensor) -> None:
        self._copy = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
        self._copy.copy_(numbers, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(numbers.device))

    def arrived(self) -> bool:
        """Whether they are there; does not wait."""
        return self._event.query()

    def read(self) -> list[float]:
        """The numbers, once they have arrived."""
        numbers: list[float] = self._copy.tolist()
        return numbers


class DeferredReads:
    """Numbers on their way, each with the function that wants them.

    Args:
        send: starts the copy of a tensor, without waiting.
    """

    def __init__(self, send: Callable[[Tensor], PinnedCopy]) -> None:
        self._send = send
        self._under_way: deque[tuple[PinnedCopy, Then]] = deque()
        self._lock = threading.Lock()

    def post(self, numbers: Tensor, then: Then) -> None:
        """Send numbers off; `then` is called by a later `look`."""
        copy = self._send(numbers)
        with self._lock:
            self._under_way.append((copy, then))

    def look(self) -> None:
        """Call `then` for the numbers that have arrived, in the order they were sent."""
        while self._under_way:
            with self._lock:
                if not self._under_way or not self._under_way[0][0].arrived():
                    return
                copy, then = self._under_way.popleft()
            then(copy.read())


_of_gpus = DeferredReads(PinnedCopy)


def read_later(numbers: Tensor, then: Then) -> None:
    """Call `then` with numbers on a GPU when a later solve begins, with others at once."""
    if numbers.device.type == "cuda":
        _of_gpus.post(numbers, then)
    else:
        then(numbers.tolist())


def finish_deferred_reads() -> None:
    """Call what waits for numbers that have arrived from GPUs since."""
    _of_gpus.look()
