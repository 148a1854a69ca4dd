"""A status says what is true: at any size of the state, and where there is no solution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import Status

SIZES = (-999, -664, 532, 1000)
"""Exponents of two: squares of such numbers are no float64."""

SOLVERS: dict[str, tuple[Callable[..., dk.Solver], dict[str, object]]] = {
    "damped": (dk.FixedPoint, {"damping": 0.5}),
    "fixed point": (dk.FixedPoint, {}),
    "broyden": (dk.Broyden, {}),
    "broyden, all options": (
        dk.Broyden,
        {"gamma": "auto", "line_search": "derivative_free", "when_full": "drop_oldest"},
    ),
    "anderson": (dk.Anderson, {}),
    "adjoint broyden": (dk.AdjointBroyden, {}),
    "gmres": (dk.GMRES, {}),
    "l-bfgs": (dk.LBFGS, {}),
    "l-bfgs, armijo": (dk.LBFGS, {"line_search": "armijo"}),
    "l-bfgs, plain": (dk.LBFGS, {"line_search": None}),
}


def solver_of(name: str, **options: object) -> dk.Solver:
    kind, own = SOLVERS[name]
    given = {"stall_steps": None, **options, **own}
    return kind(**given)


def affine(size: int) -> tuple[Tensor, Tensor]:
    """A symmetric contraction z J + c of six dimensions, c times 2^size."""
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    eigenvalues = torch.linspace(-0.5, 0.8, 6, dtype=torch.float64)
    c = torch.arange(1, 7, dtype=torch.float64)[None]
    return q @ torch.diag(eigenvalues) @ q.T, c * 2.0**size


def times(x: Tensor, size: int) -> Tensor:
    """x 2^size, also where that power itself is no number."""
    return x * 2.0 ** (size // 2) * 2.0 ** (size - size // 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SOLVERS)
def test_float64_states_of_any_size_are_solved_alike(name: str, size: int) -> None:
    """The same steps and, up to rounding, the same iterates as at size 1."""
    solutions = []
    for exponent in (0, size):
        j, c = affine(exponent)
        solver = solver_of(name, max_steps=200, rtol=1e-9)
        solution = solver(lambda z, j=j, c=c: z @ j + c, torch.zeros_like(c))
        solutions.append((times(solution.z, -exponent), solution, times(solution.trace, -exponent)))
    (z, ordinary, trace), (sized_z, sized, sized_trace) = solutions
    assert sized.status.tolist() == [Status.CONVERGED]
    assert torch.equal(sized.steps, ordinary.steps)
    torch.testing.assert_close(sized_z, z, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(sized_trace, trace, rtol=1e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SOLVERS)
def test_without_a_tolerance_only_a_residual_of_zero_converges(name: str, size: int) -> None:
    j, c = affine(size)
    solution = solver_of(name, max_steps=3, rtol=0.0, atol=0.0)(
        lambda z: z @ j + c, torch.zeros_like(c)
    )
    assert solution.status.tolist() == [Status.MAX_STEPS]
    true = times(solution.z @ j + c - solution.z, -size).norm(dim=1)
    torch.testing.assert_close(times(solution.residual, -size), true, rtol=1e-9, atol=0.0)


def rotation(z: Tensor) -> Tensor:
    """A rotation about an axis, and a step along it."""
    a, b, c = z.unbind(dim=1)
    return torch.stack((0.8 * a - 0.6 * b, 0.6 * a + 0.8 * b, c + 1.0), dim=1)


def jordan_block(z: Tensor) -> Tensor:
    """The eigenvalue 1 three times, with one eigenvector."""
    return z + torch.nn.functional.pad(z[:, 1:], (0, 1)) + 1.0


UNSOLVABLE = {
    "translation": lambda z: z + 1.0,
    "growing translation": lambda z: 1.5 * z.abs() + 1.0,
    "rotation": rotation,
    "jordan block": jordan_block,
}


SYMMETRIC = ("translation", "growing translation")
"""What L-BFGS is for."""

RUNS = [
    (name, problem)
    for name in SOLVERS
    for problem in UNSOLVABLE
    if not name.startswith("l-bfgs") or problem in SYMMETRIC
]


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize(("name", "problem"), RUNS)
def test_iterates_that_run_away_do_not_converge(name: str, problem: str, rtol: float) -> None:
    """However large ‖f(z)‖ makes the tolerance; the best iterate is what is returned."""
    f = UNSOLVABLE[problem]
    z0 = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, 0.25]], dtype=torch.float64)
    solution = solver_of(name, max_steps=60, rtol=rtol)(f, z0)
    converged = solution.converged
    if name != "gmres":  # which knows products of mere rounding, and makes no steps of them
        # A step that is lost in the rounding of z leaves a residual of zero, and that is one.
        converged = converged & (solution.residual > 0)
    assert not converged.any()
    true = (f(solution.z) - solution.z).norm(dim=1)
    torch.testing.assert_close(solution.residual, true, rtol=1e-9, atol=0.0)
    if name != "gmres":  # whose trace also holds what its cycles predict
        lowest = solution.trace.nan_to_num(torch.inf).amin(dim=1)
        torch.testing.assert_close(solution.residual, lowest, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_way_makes_no_solution(dtype: torch.dtype) -> None:
    solver = dk.FixedPoint(max_steps=3000, rtol=1e-3, stall_steps=None)
    solution = solver(lambda z: z + 1.0, torch.zeros(1, 4, dtype=dtype))
    assert solution.status.tolist() == [Status.MAX_STEPS]
    assert solution.residual.tolist() == [2.0]


@pytest.mark.parametrize(
    "name", [name for name in SOLVERS if not name.startswith(("gmres", "l-bfgs"))]
)
def test_iterates_that_grow_towards_a_solution_converge(name: str) -> None:
    """tanh(2 z) + 1e-4 from 0: the residual first grows with ‖f(z)‖, by three orders.

    Neither affine, as GMRES needs it, nor convex at the start, as L-BFGS does.
    """
    solution = solver_of(name, max_steps=200, rtol=1e-5)(
        lambda z: torch.tanh(2.0 * z) + 1e-4, torch.zeros(1, 4)
    )
    assert solution.status.tolist() == [Status.CONVERGED]
    f_z = torch.tanh(2.0 * solution.z) + 1e-4
    # Newton-like steps find the other root, near -1e-4.
    assert (f_z - solution.z).norm() <= 1.001e-5 * f_z.norm()


@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
@pytest.mark.parametrize("name", ["fixed point", "broyden", "anderson", "gmres"])
def test_slow_contractions_converge(name: str, rtol: float) -> None:
    """‖f(z)‖ grows by three orders, while the residual falls by a thousandth per step at most."""
    solution = solver_of(name, max_steps=20_000, rtol=rtol)(
        lambda z: 0.999 * z + 1.0, torch.zeros(1, 4, dtype=torch.float64)
    )
    assert solution.status.tolist() == [Status.CONVERGED]
    assert solution.residual.item() <= rtol * (0.999 * solution.z + 1.0).norm().item()
    # At least half of the way, however loose the tolerance.
    assert (solution.z > 500.0).all()
