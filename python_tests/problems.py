"""Fixed-point problems with known answers, and naive dense algebra to hold results against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def matrix_of_norm(dim: int, norm: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random matrix of the given spectral norm."""
    matrix = torch.randn(dim, dim, dtype=torch.float64)
    return (matrix * (norm / torch.linalg.matrix_norm(matrix, 2))).to(dtype)


@dataclass(frozen=True)
class Affine:
    """f(z) = W z + b with the exact solution (I − W)⁻¹ b."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def random(
        cls, batch: int, dim: int, norm: float, dtype: torch.dtype = torch.float64
    ) -> Affine:
        return cls(matrix_of_norm(dim, norm, dtype), torch.randn(batch, dim).to(dtype))

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.bias

    def solution(self) -> Tensor:
        eye = torch.eye(len(self.weight), dtype=torch.float64)
        return torch.linalg.solve(eye - self.weight.double(), self.bias.double().T).T


@dataclass(frozen=True)
class Tanh:
    """f(z) = tanh(W z + b)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def random(cls, batch: int, dim: int, norm: float, dtype: torch.dtype = torch.float64) -> Tanh:
        return cls(matrix_of_norm(dim, norm, dtype), torch.randn(batch, dim).to(dtype))

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + self.bias)

    def sample(self, index: int) -> Map:
        """The map of one sample, on vectors [dim]."""
        return lambda z: torch.tanh(self.weight @ z + self.bias[index])


@dataclass(frozen=True)
class DenseBroyden:
    """Good Broyden of one sample with a dense inverse in float64: the oracle for trajectories."""

    iterates: list[Tensor]
    residuals: list[Tensor]
    inverse: Tensor

    @classmethod
    def run(
        cls, f: Map, z0: Tensor, steps: int, *, damping: float = 1.0, gamma: float = 1.0
    ) -> DenseBroyden:
        """`steps` updates by the textbook formula, H ← H + (s − Hy) sᵀH / ⟨s, Hy⟩."""
        z = z0.clone()
        inverse = -gamma * torch.eye(z.numel(), dtype=z.dtype)
        residual = f(z) - z
        iterates, residuals = [z], [residual]
        for _ in range(steps):
            s = -damping * inverse @ residual
            z = z + s
            new_residual = f(z) - z
            y = new_residual - residual
            inverse = inverse + torch.outer(s - inverse @ y, s @ inverse) / (s @ inverse @ y)
            residual = new_residual
            iterates.append(z)
            residuals.append(residual)
        return cls(iterates, residuals, inverse)


def dense_product_form(directions: Tensor, steps: Tensor, gamma: float) -> Tensor:
    """H of one sample as explicit factors times H₀, from its directions [rank + 1, dim]."""
    dim = directions.shape[1]
    inverse = -gamma * torch.eye(dim, dtype=torch.float64)
    for j in range(len(directions) - 1):
        p, p_next = directions[j].double(), directions[j + 1].double()
        u = p_next + (steps[j] - 1.0) * p
        inverse = (torch.eye(dim, dtype=torch.float64) + torch.outer(u, p) / (p @ p)) @ inverse
    return inverse


def chained_product(
    directions: Tensor, steps: Tensor, gamma: float, x: Tensor, *, transpose: bool
) -> Tensor:
    """H x or Hᵀ x of one sample, factor after factor in float64, where dense is too large."""
    p = directions.double()
    u = [p[j + 1] + (steps[j] - 1.0) * p[j] for j in range(len(p) - 1)]
    y = x.double() if transpose else -gamma * x.double()
    for j in reversed(range(len(u))) if transpose else range(len(u)):
        left, right = (p[j], u[j]) if transpose else (u[j], p[j])
        y = y + left * (right @ y) / (p[j] @ p[j])
    return -gamma * y if transpose else y
