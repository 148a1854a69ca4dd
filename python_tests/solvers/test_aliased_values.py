"""Maps that return their z, or rows of it, in the memory that the solver writes to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deq_kernels as dk

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "z": lambda z: z,
    "a view of z": lambda z: z.detach()[:],
    "its last row": lambda z: z[-1:].expand_as(z),
    "its first row": lambda z: z[:1].expand_as(z),
}
SOLVERS = tuple(dk.solvers.SOLVERS.values())


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_values_in_the_memory_of_z(solver: type[dk.FixedPoint], name: str) -> None:
    z = torch.randn(3, 5)
    solution = solver()(MAPS[name], z)
    copied = solver()(lambda z: MAPS[name](z).clone(), z)
    assert solution.status.equal(copied.status)
    assert solution.z.equal(copied.z)
