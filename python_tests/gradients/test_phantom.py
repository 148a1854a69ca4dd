"""The synthetic setting of the phantom-gradient paper, figure 1.

A contraction f with Lipschitz constant 0.9, its fixed point by at most 100 iterations to a relative
error of 1e-5, and the cosine between the phantom and the exact gradient of the weight.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.gradients.tanh_layer import TIGHT, TanhCell

STEPS = (1, 5, 20, 80)
DAMPINGS = (0.25, 0.5, 1.0)
DIM, SAMPLES = 64, 4


def weight_gradient(cell: TanhCell, x: Tensor, cotangent: Tensor, gradient: dk.Gradient) -> Tensor:
    solver = dk.FixedPoint(max_steps=100, rtol=1e-5)
    layer = dk.DEQ(cell, solver=solver, gradient=gradient)
    z = layer(torch.zeros(len(x), DIM, dtype=torch.float64), x)
    assert layer.last_solution.converged.all()
    return torch.autograd.grad(z, cell.weight, cotangent)[0].flatten()


def problem(seed: int) -> tuple[TanhCell, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    cell = TanhCell(DIM, 0.9)
    cell.inject.data /= 20  # where tanh is nearly linear f contracts no faster than its weight
    x = torch.randn(SAMPLES, 3, dtype=torch.float64)
    cotangent = torch.randn(SAMPLES, DIM, dtype=torch.float64)
    return cell, x, cotangent, weight_gradient(cell, x, cotangent, dk.Implicit(solver=TIGHT))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("kind", [dk.Neumann, dk.Unrolled])
def test_the_cosine_rises_with_the_steps_to_one(
    kind: type[dk.Neumann] | type[dk.Unrolled], damping: float, seed: int
) -> None:
    cell, x, cotangent, exact = problem(seed)
    cosines, ratios = [], []
    for steps in STEPS:
        phantom = weight_gradient(cell, x, cotangent, kind(steps=steps, damping=damping))
        cosines.append(torch.cosine_similarity(phantom, exact, dim=0).item())
        ratios.append((phantom.norm() / exact.norm()).item())
    for before, after in pairwise(cosines):
        assert after > before - 1e-9  # rounding, where both are 1
    assert 0 < cosines[0] < 0.95
    assert cosines[1] > cosines[0] + 0.01
    assert cosines[-1] > 1 - 1e-6
    assert abs(ratios[-1] - 1) < 1e-3


@pytest.mark.parametrize("kind", [dk.Neumann, dk.Unrolled])
def test_a_small_damping_slows_it_down(kind: type[dk.Neumann] | type[dk.Unrolled]) -> None:
    cell, x, cotangent, exact = problem(0)
    for steps in STEPS[1:3]:
        cosines = [
            torch.cosine_similarity(
                weight_gradient(cell, x, cotangent, kind(steps=steps, damping=damping)),
                exact,
                dim=0,
            ).item()
            for damping in DAMPINGS
        ]
        assert cosines == sorted(cosines)
