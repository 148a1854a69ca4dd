"""A layer z = tanh(W z + U x) whose Jacobians and gradients are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import deq_kernels as dk
from python_tests.problems import matrix_of_norm

TIGHT = dk.Broyden(max_steps=120, rtol=1e-13, stall_steps=None)


class TanhCell(nn.Module):
    """z = tanh(W z + U x)."""

    def __init__(self, dim: int, norm: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix_of_norm(dim, norm, dtype))
        self.inject = nn.Parameter(torch.randn(dim, 3, dtype=torch.float64).to(dtype))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + x @ self.inject.T)

    def jacobians(self, z: Tensor, x: Tensor) -> Tensor:
        """∂f/∂z of each sample, [batch, dim, dim]."""
        slope = 1.0 - self(z, x).detach() ** 2
        return slope[:, :, None] * self.weight.detach()

    def adjoint(self, z: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        """w of each sample by a dense solve of w = Jᵀw + ℓ."""
        matrix = torch.eye(z.shape[1], dtype=z.dtype) - self.jacobians(z.detach(), x).mT
        return torch.linalg.solve(matrix, cotangent[:, :, None])[:, :, 0]


def solved(
    gradient: dk.Gradient, *, batch: int = 3, dim: int = 12, norm: float = 0.8
) -> tuple[TanhCell, Tensor, dk.DEQ, Tensor, Tensor]:
    cell = TanhCell(dim, norm)
    x = torch.randn(batch, 3, dtype=torch.float64, requires_grad=True)
    layer = dk.DEQ(cell, solver=TIGHT, gradient=gradient)
    z0 = torch.zeros(batch, dim, dtype=torch.float64)
    return cell, x, layer, z0, torch.randn(batch, dim, dtype=torch.float64)


def parameter_gradients(cell: TanhCell, z: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    """(∂f/∂θ)ᵀ w for both parameters and x, from the derivative of tanh."""
    pre = (1.0 - cell(z, x).detach() ** 2) * w
    return [pre.T @ z.detach(), pre.T @ x.detach(), pre @ cell.inject.detach()]


def assert_gradients(cell: TanhCell, x: Tensor, expected: list[Tensor], rtol: float) -> None:
    for actual, target in zip((cell.weight.grad, cell.inject.grad, x.grad), expected, strict=True):
        torch.testing.assert_close(actual, target, rtol=rtol, atol=rtol * target.abs().max().item())
