"""The synthetic setting of the phantom-gradient paper, figure 1.

A contraction f with Lipschitz constant 0.9, its fixed point by at most 100 iterations to a relative
error of 1e-5, and the cosine between the phantom and the exact gradient of the weight. The layer is
a structured cell, and is solved as one; `test_the_layer_agrees` holds it to the generic path.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.cells.solves import solve_dense
from python_tests.gradients.tanh_layer import TIGHT, TanhCell
from python_tests.tolerances import assert_close

STEPS = (1, 5, 20, 80)
DAMPINGS = (0.25, 0.5, 1.0)
DIM, SAMPLES = 64, 4


SOLVER = dk.FixedPoint(max_steps=400, rtol=1e-13)
EXACT = dk.Implicit(solver=dk.FixedPoint(max_steps=400, rtol=1e-13, stall_steps=None))


def weight_gradient(cell: TanhCell, x: Tensor, cotangent: Tensor, gradient: dk.Gradient) -> Tensor:
    solutions: list[dk.Solution] = []
    z = solve_dense(
        x @ cell.inject.T,
        cell.weight,
        activation="tanh",
        max_steps=SOLVER.max_steps,
        rtol=SOLVER.rtol,
        accelerate=False,  # the steps of SOLVER
        gradient=gradient,
        on_solve=solutions.append,
    )
    assert solutions[0].converged.all()
    return torch.autograd.grad(z, cell.weight, cotangent)[0].flatten()


def layer_gradient(cell: TanhCell, x: Tensor, cotangent: Tensor, gradient: dk.Gradient) -> Tensor:
    layer = dk.DEQ(cell, solver=SOLVER, gradient=gradient)
    z = layer(torch.zeros(len(x), DIM, dtype=torch.float64), x)
    return torch.autograd.grad(z, cell.weight, cotangent)[0].flatten()


def problem(seed: int) -> tuple[TanhCell, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    cell = TanhCell(DIM, 0.9)
    cell.inject.data /= 20  # where tanh is nearly linear f contracts no faster than its weight
    x = torch.randn(SAMPLES, 3, dtype=torch.float64)
    cotangent = torch.randn(SAMPLES, DIM, dtype=torch.float64)
    return cell, x, cotangent, weight_gradient(cell, x, cotangent, EXACT)


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


@pytest.mark.parametrize(
    "gradient",
    [dk.Neumann(steps=5), dk.Unrolled(steps=5), dk.JacobianFree()],
    ids=lambda gradient: type(gradient).__name__,
)
def test_the_layer_agrees(gradient: dk.Gradient) -> None:
    cell, x, cotangent, _ = problem(0)
    ours = weight_gradient(cell, x, cotangent, gradient)
    assert_close(ours, layer_gradient(cell, x, cotangent, gradient), torch.float64)


def test_twenty_broyden_steps_give_the_exact_gradient() -> None:
    cell, x, cotangent, exact = problem(0)
    broyden = dk.Implicit(solver=dk.Broyden(max_steps=20))
    other = layer_gradient(cell, x, cotangent, broyden)
    assert torch.cosine_similarity(other, exact, dim=0) > 0.9999
    tight = layer_gradient(cell, x, cotangent, dk.Implicit(solver=TIGHT))
    torch.testing.assert_close(exact, tight, rtol=1e-9, atol=1e-12)
