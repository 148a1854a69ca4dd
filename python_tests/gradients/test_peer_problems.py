"""The differentiation problems of jaxopt's tests, re-expressed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import deq_kernels as dk

FORWARD: dict[str, dk.Solver] = {
    "Broyden": dk.Broyden(max_steps=200, rtol=0.0, atol=1e-12, stall_steps=None),
    "Anderson": dk.Anderson(max_steps=200, rtol=0.0, atol=1e-12, stall_steps=None),
    "FixedPoint": dk.FixedPoint(max_steps=400, rtol=0.0, atol=1e-12, stall_steps=None),
}
EXACT = dk.Implicit(solver=dk.GMRES(max_steps=300, rtol=1e-13))


@pytest.mark.parametrize("solver", FORWARD)
def test_cosine_with_a_parameter(solver: str) -> None:
    """z = cos z + θ: dz/dθ = 1 / (1 + sin z)."""
    layer = dk.DEQ(lambda z, theta: torch.cos(z) + theta, solver=FORWARD[solver], gradient=EXACT)
    z0 = torch.tensor([[0.0, math.pi / 4]], dtype=torch.float64)
    # At θ = π/2 the derivative of f is −1, and fixed-point iteration all but stands still.
    second = 0.5 if solver == "FixedPoint" else math.pi / 2
    theta = torch.tensor([[0.0, second]], dtype=torch.float64, requires_grad=True)
    z = layer(z0, theta)
    assert isinstance(z, Tensor)
    (gradient,) = torch.autograd.grad(z.sum(), theta)
    torch.testing.assert_close(gradient, 1 / (1 + torch.sin(z.detach())), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda t: layer(z0, t), (theta,))


@pytest.mark.parametrize("solver", FORWARD)
def test_flat_landscape(solver: str) -> None:
    """z = θ z: the solution is 0 whatever θ is, and so is the gradient."""
    layer = dk.DEQ(lambda z, theta: theta * z, solver=FORWARD[solver], gradient=EXACT)
    z0 = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    theta = torch.tensor([[0.05, 0.2]], dtype=torch.float64, requires_grad=True)
    z = layer(z0, theta)
    assert isinstance(z, Tensor)
    (gradient,) = torch.autograd.grad(z.sum(), theta)
    torch.testing.assert_close(gradient, torch.zeros_like(theta), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("solver", FORWARD)
def test_affine_contraction(solver: str) -> None:
    """z = M z + b with 200 unknowns: dL/db = (I − M)⁻ᵀ ℓ and dL/dM = (dL/db) zᵀ."""
    dim = 200
    matrix = torch.rand(dim, dim, dtype=torch.float64) * 2 - 1
    matrix = matrix + matrix.T
    matrix = (matrix / (2 * torch.linalg.eigvalsh(matrix).abs().max() + 1e-4)).requires_grad_()
    bias = torch.rand(1, dim, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(1, dim, dtype=torch.float64)
    layer = dk.DEQ(lambda z, m, b: z @ m.T + b, solver=FORWARD[solver], gradient=EXACT)
    z = layer(torch.zeros_like(bias), matrix, bias)
    assert isinstance(z, Tensor)
    for_matrix, for_bias = torch.autograd.grad(z, (matrix, bias), cotangent)
    eye = torch.eye(dim, dtype=torch.float64)
    w = torch.linalg.solve((eye - matrix.detach()).T, cotangent.T).T
    torch.testing.assert_close(for_bias, w, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(for_matrix, w.T @ z.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gradient", [EXACT, dk.Implicit(), dk.Shine()], ids=["gmres", "", "shine"])
def test_ridge_regression(gradient: dk.Gradient) -> None:
    """The derivative of the minimiser by the penalty λ, from the equation ∇r(z) = 0 alone.

    z = (XᵀX / n + λ I)⁻¹ Xᵀ y / n, so dz/dλ = −(XᵀX / n + λ I)⁻¹ z.
    """
    samples, features = 10, 3
    x = torch.randn(samples, features, dtype=torch.float64)
    y = torch.randn(samples, dtype=torch.float64)
    penalty = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    hessian = x.T @ x / samples

    def descent(z: Tensor, penalty: Tensor) -> Tensor:
        gradient_of_objective = (z @ x.T - y) @ x / samples + penalty * z
        return z - 0.15 * gradient_of_objective

    layer = dk.DEQ(descent, solver=dk.Broyden(rtol=0.0, atol=1e-13), gradient=gradient)
    z = layer(torch.zeros(1, features, dtype=torch.float64), penalty)
    assert isinstance(z, Tensor)
    matrix = hessian + penalty.detach() * torch.eye(features, dtype=torch.float64)
    torch.testing.assert_close(z[0], torch.linalg.solve(matrix, x.T @ y / samples))
    exact = -torch.linalg.solve(matrix, z[0].detach())
    mine = torch.stack(
        [torch.autograd.grad(z[0, i], penalty, retain_graph=True)[0] for i in range(features)]
    )
    tolerance = 0.2 if isinstance(gradient, dk.Shine) else 1e-3
    torch.testing.assert_close(mine, exact, rtol=tolerance, atol=1e-6)
