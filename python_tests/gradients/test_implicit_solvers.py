"""Implicit with every solver that can solve the adjoint equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.gradients.tanh_layer import TIGHT, assert_gradients, parameter_gradients, solved
from python_tests.problems import symmetric_matrix

SOLVERS = (
    TIGHT,
    dk.GMRES(max_steps=60, rtol=1e-13, stall_steps=None),
    dk.GMRES(max_steps=200, restart=5, rtol=1e-13, stall_steps=None),
    dk.Anderson(max_steps=300, rtol=1e-13, stall_steps=None),
    dk.FixedPoint(max_steps=600, rtol=1e-13, stall_steps=None),
)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("norm", [0.5, 0.95])
def test_gradients_equal_dense_solves(solver: dk.Solver, norm: float) -> None:
    seen: list[dk.Solution] = []
    cell, x, layer, z0, cotangent = solved(
        dk.Implicit(solver=solver, on_solve=seen.append), norm=norm
    )
    z = layer(z0, x)
    z.backward(cotangent)
    w = cell.adjoint(z, x.detach(), cotangent)
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-9)
    assert seen[0].converged.all()


@pytest.mark.parametrize("solver", SOLVERS[:2], ids=lambda s: type(s).__name__)
def test_expansive_equations(solver: dk.Solver) -> None:
    """Broyden and GMRES do not need a contraction."""
    weight = torch.randn(3, 8, 8, dtype=torch.float64)
    shift = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    layer = dk.DEQ(
        lambda z, b: torch.einsum("bij,bj->bi", weight, z) + b,
        solver=dk.GMRES(max_steps=60, rtol=1e-13),
        gradient=dk.Implicit(solver=solver),
    )
    cotangent = torch.randn(3, 8, dtype=torch.float64)
    layer(torch.zeros(3, 8, dtype=torch.float64), shift).backward(cotangent)
    matrix = torch.eye(8, dtype=torch.float64) - weight.mT
    expected = torch.linalg.solve(matrix, cotangent[:, :, None])[:, :, 0]
    torch.testing.assert_close(shift.grad, expected, rtol=1e-8, atol=1e-8)


def test_lbfgs_solves_symmetric_equations() -> None:
    matrix = symmetric_matrix(*torch.linspace(-2.0, 0.8, 10).tolist())
    shift = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)
    solver = dk.LBFGS(max_steps=80, rtol=1e-11, stall_steps=None)
    layer = dk.DEQ(lambda z, b: z @ matrix + b, solver=solver, gradient=dk.Implicit(solver=solver))
    cotangent = torch.randn(2, 10, dtype=torch.float64)
    layer(torch.zeros(2, 10, dtype=torch.float64), shift).backward(cotangent)
    expected = torch.linalg.solve(torch.eye(10, dtype=torch.float64) - matrix, cotangent.T).T
    torch.testing.assert_close(shift.grad, expected, rtol=1e-8, atol=1e-8)


def test_the_size_of_the_loss_does_not_matter_to_gmres() -> None:
    def gradient(scale: float) -> Tensor:
        torch.manual_seed(4)
        cell, x, layer, z0, cotangent = solved(dk.Implicit(solver=dk.GMRES(rtol=1e-12)))
        layer(z0, x).backward(scale * cotangent)
        return cell.weight.grad / scale

    for scale in (1e-200, 1e200):
        torch.testing.assert_close(gradient(scale), gradient(1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (dk.Broyden(compact=True), "must have compact=False"),
        (dk.FixedPoint(compact=True), "must have compact=False"),
        (dk.Broyden(cuda_graph=True), "must have cuda_graph=False"),
        (dk.AdjointBroyden(), "got AdjointBroyden, whose steps differentiate the map"),
    ],
)
def test_solvers_that_cannot(solver: dk.Solver, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dk.Implicit(solver=solver)


def test_a_compacting_forward_solver_goes_with_it() -> None:
    cell, x, layer, z0, cotangent = solved(dk.Implicit(solver=TIGHT))
    compacting = dk.DEQ(
        cell,
        solver=dk.Broyden(max_steps=120, rtol=1e-13, stall_steps=None, compact=True),
        gradient=dk.Implicit(solver=TIGHT),
        per_sample=(0,),
    )
    grads = [
        torch.autograd.grad(each(z0, x), (x, cell.weight), cotangent)
        for each in (layer, compacting)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
