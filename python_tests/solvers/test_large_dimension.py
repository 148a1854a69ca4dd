"""Ten million elements in one sample."""

from __future__ import annotations

import pytest
import torch

import deq_kernels as dk

DIM = 10_000_000
OPTIONS = {"max_steps": 12, "rtol": 1e-4}
SOLVERS = (
    dk.Broyden(**OPTIONS, history_length=2),
    dk.Broyden(**OPTIONS, history_dtype=torch.bfloat16, history_length=3),
    dk.FixedPoint(**OPTIONS),
    dk.Anderson(**OPTIONS, history_length=3),
    dk.GMRES(**OPTIONS, restart=3),
)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_every_element_counts(solver: dk.Solver) -> None:
    """Each has a weight and a solution of its own; those at the end are as right as the others."""
    weight = torch.linspace(-0.25, 0.25, DIM)

    def f(z: torch.Tensor) -> torch.Tensor:
        return weight * z + 1.0

    solution = solver(f, torch.zeros(1, DIM), keep_inverse=False)
    assert solution.converged.all()
    exact = 1.0 / (1.0 - weight)
    assert ((solution.z[0] - exact).norm() <= 2e-4 * exact.norm()).item()
    assert ((solution.z[0, -1000:] - exact[-1000:]).norm() <= 2e-3 * exact[-1000:].norm()).item()
