"""The fixed-point problems of jaxopt's and optimistix's tests, re-expressed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import deq_kernels as dk

COSINE = 0.7390851332151607
OMEGA = 0.5671432904097838
"""The solutions of z = cos z and z = exp(−z)."""

SOLVERS: dict[str, dk.Solver] = {
    "Broyden": dk.Broyden(max_steps=200, rtol=0.0, atol=1e-9, stall_steps=None),
    "Anderson": dk.Anderson(max_steps=200, rtol=0.0, atol=1e-9, stall_steps=None),
    "FixedPoint": dk.FixedPoint(max_steps=400, rtol=0.0, atol=1e-9, stall_steps=None),
}


def _double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def affine_contractive(dim: int = 200) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """jaxopt: a symmetric matrix with eigenvalues within ±1/2."""
    matrix = torch.rand(dim, dim, dtype=torch.float64) * 2 - 1
    matrix = matrix + matrix.T
    matrix = matrix / (2 * torch.linalg.eigvalsh(matrix).abs().max() + 1e-4)
    bias = torch.rand(1, dim, dtype=torch.float64)
    solution = torch.linalg.solve(torch.eye(dim, dtype=torch.float64) - matrix, bias.T).T
    return lambda z: z @ matrix.T + bias, torch.zeros_like(bias), solution


def nonlinear_heat(points: int = 40) -> Callable[[Tensor], Tensor]:
    """optimistix: an implicit trapezoidal step of y_t = (1 − y) y_xx from y = x²."""
    x = torch.linspace(-1, 1, points, dtype=torch.float64)
    width = float(x[1] - x[0])
    start = (x * x)[None]

    def rate(y: Tensor) -> Tensor:
        second = (y[:, 2:] - 2 * y[:, 1:-1] + y[:, :-2]) / width**2
        return functional.pad((1 - y[:, 1:-1]) * second, (1, 1))

    step = 0.4 * width**2
    return lambda y: start + 0.5 * step * (rate(y) + rate(start))


def robertson(y: Tensor) -> Tensor:
    """optimistix: Robertson's stiff chemical kinetics."""
    a, b, c = y.unbind(1)
    slow, fast, back = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack((back - slow, slow - fast - back, fast), dim=1)


def problem(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor | None]:
    """A map, a start, and the solution where it is known in closed form."""
    half = torch.full((2, 28), 0.5, dtype=torch.float64)
    linear = _double(28, 28)
    step = 1 / 16
    if name == "cos":
        return torch.cos, half, torch.full_like(half, COSINE)
    if name == "cos with parameters":
        theta = torch.tensor([[0.0, math.pi / 2]], dtype=torch.float64)
        start = torch.tensor([[0.3, math.pi / 4]], dtype=torch.float64)
        solution = torch.tensor([[COSINE, math.pi / 2]], dtype=torch.float64)
        return lambda z: torch.cos(z) + theta, start, solution
    if name == "scalar":
        return lambda z: 0.5 * z + 0.5, torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    if name == "exponential":
        return lambda z: torch.exp(-z), half, torch.full_like(half, OMEGA)
    if name == "affine contractive":
        return affine_contractive()
    if name == "network":
        inner, outer, bias = _double(8, 28) / 28**0.5, _double(28, 8) / 8**0.5, _double(28)
        return lambda z: 0.1 * (functional.softplus(z @ inner.T) @ outer.T + bias), half, None
    if name == "nonlinear heat":
        return nonlinear_heat(), torch.ones(1, 40, dtype=torch.float64), None
    # One implicit midpoint step from y₀ = 0, as an equation for y, for f(y) and for f(y) dt.
    if name == "midpoint y, linear":
        return lambda y: step * (0.5 * y @ linear.T), half, torch.zeros_like(half)
    if name == "midpoint f, linear":
        return lambda y: step * (y @ linear.T), half, torch.zeros_like(half)
    if name == "midpoint k, linear":
        return lambda y: (y @ linear.T) * step, half, torch.zeros_like(half)
    ones = torch.ones(1, 3, dtype=torch.float64)
    if name == "midpoint y, Robertson":
        return lambda y: 1e-8 * robertson(0.5 * y), ones, torch.zeros_like(ones)
    if name == "midpoint f, Robertson":
        return lambda y: robertson(1e-8 * y), ones, torch.zeros_like(ones)
    assert name == "midpoint k, Robertson"
    return lambda y: 1e-8 * robertson(y), ones, torch.zeros_like(ones)


NAMES = [
    *("cos", "cos with parameters", "scalar", "exponential", "affine contractive", "network"),
    *("nonlinear heat", "midpoint y, linear", "midpoint f, linear", "midpoint k, linear"),
    *("midpoint y, Robertson", "midpoint f, Robertson", "midpoint k, Robertson"),
]


def _radius(f: Callable[[Tensor], Tensor], z0: Tensor) -> float:
    """Of the Jacobian at the solution, the whole batch being one state."""
    z = SOLVERS["Broyden"](f, z0).z
    assert isinstance(z, Tensor)
    jacobian = torch.autograd.functional.jacobian(f, z).reshape(z.numel(), z.numel())
    return float(torch.linalg.eigvals(jacobian).abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solutions(solver: str, name: str) -> None:
    f, z0, known = problem(name)
    if solver == "FixedPoint" and (radius := _radius(f, z0)) > 0.96:
        pytest.skip(f"spectral radius {radius:.2f}: not for fixed-point iteration")
    solution = SOLVERS[solver](f, z0)
    assert solution.converged.all(), solution.summary()
    assert isinstance(solution.z, Tensor)
    assert (f(solution.z) - solution.z).norm() < 2e-9
    if known is not None:
        torch.testing.assert_close(solution.z, known, rtol=1e-6, atol=1e-7)


def test_geometric_decay() -> None:
    """jaxopt: ratios of up to 0.999; Broyden's and Anderson's methods end in 10 evaluations."""
    ratios = torch.tensor([0.9, 0.99, 0.999], dtype=torch.float64)
    z0 = torch.tensor([[1.0, 0.4, -0.2]], dtype=torch.float64)
    for solver in (dk.Broyden, dk.Anderson):
        solution = solver(max_steps=10, rtol=0.0, atol=1e-5)(lambda z: ratios * z, z0)
        assert solution.converged.all()
        assert isinstance(solution.z, Tensor)
        assert solution.z.norm() < 1e-2
    slow = dk.FixedPoint(max_steps=4000, rtol=0.0, atol=1e-5, stall_steps=None)
    assert slow(lambda z: ratios * z, z0).converged.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_several_tensors(solver: str) -> None:
    """jaxopt: sin(x) x² and y³ in one state of two tensors."""

    def f(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = state
        return torch.sin(x) * x**2, y**3

    x0 = torch.tensor([[0.6, 0.0, -0.1]], dtype=torch.float64)
    y0 = torch.tensor([[[0.7], [0.5]]], dtype=torch.float64)
    solution = SOLVERS[solver](f, (x0, y0))
    assert solution.converged.all()
    x, y = solution.z
    residuals = [(a - b).norm() for a, b in zip(f((x, y)), (x, y), strict=True)]
    assert max(residuals) < 1e-8
    if solver == "FixedPoint":
        assert x.norm() + y.norm() < 1e-6


def test_rotations_about_a_centre() -> None:
    """jaxopt: rotations, on which fixed-point iteration only circles."""
    angles = torch.pi / torch.tensor([2, 3, 4, 5, 6, 1.27, 1.73], dtype=torch.float64)
    blocks = [
        torch.tensor([[t.cos(), -t.sin()], [t.sin(), t.cos()]], dtype=torch.float64) for t in angles
    ]
    matrix = torch.block_diag(*blocks)
    centre = torch.arange(1, 15, dtype=torch.float64)[None]
    z0 = torch.rand(1, 14, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return (z - centre) @ matrix.T + centre

    stopping = {"max_steps": 60, "rtol": 0.0, "atol": 1e-8, "stall_steps": None}
    for solver in (dk.Broyden(**stopping), dk.Anderson(history_length=15, **stopping)):
        solution = solver(f, z0)
        assert solution.converged.all(), solution.summary()
        torch.testing.assert_close(solution.z, centre, rtol=1e-6, atol=1e-6)
    circling = dk.FixedPoint(**stopping)(f, z0)
    assert not circling.converged.any()
