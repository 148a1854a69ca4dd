"""Numbers from a device are looked at when they have arrived, in order, and never waited for."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.solvers.machinery.deferred_reads import DeferredReads, read_later


class Letter:
    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.tolist()
        self.there = False

    def arrived(self) -> bool:
        return self.there

    def read(self) -> list[float]:
        assert self.there, "the host would have waited"
        return self.numbers


def test_numbers_are_read_once_they_have_arrived_and_in_order() -> None:
    letters: list[Letter] = []
    read: list[list[float]] = []

    def send(numbers: Tensor) -> Letter:
        letters.append(Letter(numbers))
        return letters[-1]

    late = DeferredReads(send)
    for value in (1.0, 2.0, 3.0):
        late.post(torch.tensor([value]), read.append)
    late.look()
    assert not read
    letters[1].there = True
    late.look()
    assert not read  # the first is still under way
    letters[0].there = True
    late.look()
    assert read == [[1.0], [2.0]]
    letters[2].there = True
    late.look()
    late.look()
    assert read == [[1.0], [2.0], [3.0]]


def test_numbers_on_the_cpu_are_read_at_once() -> None:
    read: list[list[float]] = []
    read_later(torch.tensor([1.0, 2.0]), read.append)
    assert read == [[1.0, 2.0]]
