"""Numbers that a device computes and the host looks at when they have arrived, without waiting."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Then = Callable[[list[float]], None]
"""Called on the host with the numbers."""


class Letter(Protocol):
    """Numbers on their way from the device."""

    def arrived(self) -> bool:
        """Whether they are there; does not wait."""
        ...

    def read(self) -> list[float]:
        """The numbers, once they have arrived."""
        ...


class PinnedLetter:
    """Numbers copied to pinned memory, with the event that says when they have arrived."""

    def __init__(self, numbers: Tensor) -> None:
        self._copy = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
        self._copy.copy_(numbers, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(numbers.device))

    def arrived(self) -> bool:
        return self._event.query()

    def read(self) -> list[float]:
        numbers: list[float] = self._copy.tolist()
        return numbers


class DeferredReads:
    """Letters under way, each with what is to be done with it.

    Args:
        send: makes a letter of a tensor, without waiting.
    """

    def __init__(self, send: Callable[[Tensor], Letter]) -> None:
        self._send = send
        self._under_way: deque[tuple[Letter, Then]] = deque()
        self._lock = threading.Lock()

    def post(self, numbers: Tensor, then: Then) -> None:
        """Send numbers off; `then` is called by a later `look`."""
        letter = self._send(numbers)
        with self._lock:
            self._under_way.append((letter, then))

    def look(self) -> None:
        """Call what belongs to the letters that have arrived, in the order they were sent."""
        while self._under_way:
            with self._lock:
                if not self._under_way or not self._under_way[0][0].arrived():
                    return
                letter, then = self._under_way.popleft()
            then(letter.read())


_of_gpus = DeferredReads(PinnedLetter)


def read_later(numbers: Tensor, then: Then) -> None:
    """Call `then` with numbers on a GPU when a later solve begins, with others at once."""
    if numbers.device.type == "cuda":
        _of_gpus.post(numbers, then)
    else:
        then(numbers.tolist())


def finish_deferred_reads() -> None:
    """Call what waits for numbers that have arrived from GPUs since."""
    _of_gpus.look()
