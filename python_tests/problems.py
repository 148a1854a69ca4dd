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


class Gate:
    """f(z) = relu(W z + b) with features as rows, which W couples: torchdeq's graph layers do that.

    From zero, row 0 has a residual of exactly 0 until row 1 has grown.
    """

    weight = torch.tensor([[0.0, 0.8], [0.3, 0.5]], dtype=torch.float64)
    bias = torch.tensor([[-1.0, -1.0, -1.0], [2.0, 1.9, 2.2]], dtype=torch.float64)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.relu(self.weight @ z + self.bias)

    def broyden(self, steps: int) -> list[Tensor]:
        """Broyden's iterates from 0, an inverse per row; a step of length 0 updates nothing."""
        z = torch.zeros(2, 3, dtype=torch.float64)
        inverses = [-torch.eye(3, dtype=torch.float64) for _ in range(2)]
        residual, iterates = self(z) - z, [z]
        for _ in range(steps):
            moves = [-inverse @ r for inverse, r in zip(inverses, residual, strict=True)]
            z = z + torch.stack(moves)
            before, residual = residual, self(z) - z
            for row, s in enumerate(moves):
                if s.any():
                    h, y = inverses[row], residual[row] - before[row]
                    inverses[row] = h + torch.outer(s - h @ y, s @ h) / (s @ h @ y)
            iterates.append(z)
        return iterates


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


@dataclass(frozen=True)
class Case:
    """A fixed-point problem with its start, for tables of solvers and problems.

    Attributes:
        f: the map, on states [batch, dim].
        z0: where solvers start, [batch, dim].
        affine: whether f is affine.
        symmetric: whether the Jacobian of f is symmetric everywhere, with eigenvalues below 1 near
            the solution: f(z) = z − ∇r(z) with r convex there.
    """

    f: Map
    z0: Tensor
    affine: bool = False
    symmetric: bool = False


def symmetric_matrix(*eigenvalues: float) -> Tensor:
    """A random symmetric matrix with the given eigenvalues."""
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)).double())
    return (basis * torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def heat_equation(points: int, source: Tensor) -> Map:
    """The Jacobi iteration for −u″ = source on (0, 1), u = 0 at both ends, at `points` inside.

    Its Jacobian is symmetric with spectral radius cos(π / (points + 1)).
    """
    width = 1 / (points + 1)

    def f(z: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(z, (1, 1))
        return (padded[:, :-2] + padded[:, 2:] + width**2 * source) / 2

    return f


@dataclass(frozen=True)
class MLP:
    """f(z) = B tanh(A z + x), two layers."""

    inner: Tensor
    outer: Tensor
    x: Tensor

    @classmethod
    def random(cls, batch: int, dim: int, hidden: int, norm: float) -> MLP:
        """Layers whose spectral norms multiply to `norm`."""
        inner, outer = (torch.randn(hidden, dim).double(), torch.randn(dim, hidden).double())
        norms = (torch.linalg.matrix_norm(matrix, 2) for matrix in (inner, outer))
        inner, outer = (
            matrix * (norm**0.5 / size) for matrix, size in zip((inner, outer), norms, strict=True)
        )
        return cls(inner, outer, torch.randn(batch, hidden).double())

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.inner.T + self.x) @ self.outer.T


def root_of(residual: Map, start: list[float], sign: float = 1.0, **kind: bool) -> Case:
    """The equation residual(z) = 0 as f(z) = z ± residual(z), started at `start`, then near it."""
    at = torch.tensor(start, dtype=torch.float64)
    nudge = 0.02 * torch.arange(3, dtype=torch.float64)[:, None]
    return Case(lambda z: z + sign * residual(z), at + nudge * (at.abs() + 0.1), **kind)


# The equations that SciPy tests its nonlinear solvers with (scipy/optimize/tests/test_nonlin.py).


def cubic_spring(z: Tensor) -> Tensor:
    """F: linear springs of different stiffness with a small cubic term."""
    stiffness = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5], dtype=z.dtype)
    return -stiffness * z - 0.01 * z.square().sum(1, keepdim=True) * z


def identity(z: Tensor) -> Tensor:
    """F2: the simplest linear equation."""
    return z.clone()


def second_difference(z: Tensor) -> Tensor:
    """F3: a tridiagonal linear system."""
    padded = torch.nn.functional.pad(z, (1, 1))
    right = torch.tensor([1.0, 2.0, 3.0], dtype=z.dtype)
    return padded[:, :-2] - 2 * z + padded[:, 2:] - right


def powell(z: Tensor) -> Tensor:
    """F4: Powell's badly scaled function."""
    x, y = z.unbind(1)
    return torch.stack((1e4 * x * y - 1, torch.exp(-x) + torch.exp(-y) - (1 + 1e-4)), dim=1)


def pipe_network(z: Tensor) -> Tensor:
    """F5: flows through four parallel pipes: equal pressure drops q² / 2, a total flow of 4."""
    pressure = 0.5 * z.square()
    return torch.cat((pressure[:, 1:] - pressure[:, :1], z.sum(1, keepdim=True) - 4), dim=1)


def preconditioned_pair(z: Tensor) -> Tensor:
    """F6: two coupled equations, multiplied with the inverse of a nearby Jacobian."""
    x, y = z.unbind(1)
    values = torch.stack(((x + 3) * (y**5 - 7) + 18, torch.sin(y * torch.exp(x) - 1)), dim=1)
    jacobian = torch.tensor([[-4.256, 14.7], [0.8394989, 0.59964207]], dtype=z.dtype)
    return -torch.linalg.solve(jacobian, values.T).T


def table_of_problems() -> dict[str, Case]:
    """Problems that every solver is tried on, by name, in float64. Draws random numbers."""
    batch, dim = 3, 12
    zeros = torch.zeros(batch, dim, dtype=torch.float64)
    contractive = symmetric_matrix(*torch.linspace(-0.8, 0.8, dim).tolist())
    expansive = symmetric_matrix(*torch.linspace(-3.0, 0.5, dim).tolist())
    bias = torch.randn(batch, dim, dtype=torch.float64)
    return {
        "linear contractive": Case(Affine.random(batch, dim, 0.7), zeros, affine=True),
        "linear expansive": Case(Affine.random(batch, dim, 4.0), zeros, affine=True),
        "symmetric contractive": Case(
            Affine(contractive, bias), zeros, affine=True, symmetric=True
        ),
        "symmetric expansive": Case(Affine(expansive, bias), zeros, affine=True, symmetric=True),
        "tanh 0.5": Case(Tanh.random(batch, dim, 0.5), zeros),
        "tanh 1.0": Case(Tanh.random(batch, dim, 1.0), zeros),
        "tanh 1.5": Case(Tanh.random(batch, dim, 1.5), zeros),
        "heat equation": Case(
            heat_equation(20, torch.rand(batch, 20, dtype=torch.float64)),
            torch.zeros(batch, 20, dtype=torch.float64),
            affine=True,
            symmetric=True,
        ),
        "cos": Case(torch.cos, zeros, symmetric=True),
        "MLP": Case(MLP.random(batch, dim, 24, 0.9), zeros),
        "F": root_of(cubic_spring, [1.0] * 5, symmetric=True),
        "F2": root_of(identity, [1.0] * 6, sign=-1.0, affine=True, symmetric=True),
        "F3": root_of(second_difference, [1.0, 2.0, 3.0], affine=True, symmetric=True),
        "F4": root_of(powell, [-1.0, -2.0]),
        "F5": root_of(pipe_network, [2.0, 0.0, 2.0, 0.0], sign=-1.0),
        "F6": root_of(preconditioned_pair, [-0.5, 1.4]),
    }
