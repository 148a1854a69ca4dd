"""GMRES against dense solves, dense Krylov minimisers, and maps that are not what it is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.problems import Affine, Tanh, matrix_of_norm


def minimisers(problem: Affine, z0: Tensor, sample: int, cycle: int, products: int) -> list[float]:
    """Residual norms of one sample: true at each cycle's start, then the least in each subspace."""
    dim = len(problem.weight)
    operator = torch.eye(dim, dtype=torch.float64) - problem.weight
    w, norms, taken = z0[sample], [], 0
    while taken < products:
        r = problem.bias[sample] - operator @ w
        norms.append(r.norm().item())
        basis = torch.linalg.qr(
            torch.stack([torch.linalg.matrix_power(operator, k) @ r for k in range(cycle)], dim=1)
        ).Q
        for size in range(1, cycle + 1):
            image = operator @ basis[:, :size]
            y = torch.linalg.lstsq(image, r[:, None]).solution
            norms.append((r - (image @ y)[:, 0]).norm().item())
            taken += 1
        w = w + (basis @ y)[:, 0]
    return norms


@pytest.mark.parametrize("norm", [0.5, 0.99, 3.0, 30.0])
def test_solves_in_dim_products(norm: float) -> None:
    """Contractive or expansive: d elements take f(w₀), d products and one check."""
    problem = Affine.random(5, 12, norm)
    solution = dk.GMRES(max_steps=40, rtol=1e-11)(problem, torch.randn(5, 12).double())
    assert solution.converged.all()
    assert solution.steps.max() <= 14
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("restart", [1, 3, 5])
def test_predicted_residuals_are_those_of_the_dense_minimisers(restart: int) -> None:
    problem = Affine.random(3, 20, 0.9)
    z0 = torch.randn(3, 20, dtype=torch.float64)
    cycle = restart + 1
    solution = dk.GMRES(max_steps=3 * cycle + 1, rtol=0.0, restart=restart)(problem, z0)
    for sample in range(3):
        expected = minimisers(problem, z0, sample, restart, 3 * restart)
        torch.testing.assert_close(
            solution.trace[sample, : 3 * cycle],
            torch.tensor(expected, dtype=torch.float64),
            rtol=1e-7,
            atol=1e-10,
        )
        # The check after each cycle finds what the cycle predicted.
        for end in range(cycle, 3 * cycle + 1, cycle):
            torch.testing.assert_close(
                solution.trace[sample, end], solution.trace[sample, end - 1], rtol=1e-6, atol=0.0
            )


def test_restarts_converge() -> None:
    problem = Affine.random(4, 60, 0.9)
    solution = dk.GMRES(max_steps=200, rtol=1e-10, restart=5)(
        problem, torch.zeros(4, 60, dtype=torch.float64)
    )
    assert solution.converged.all()
    assert solution.steps.min() > 7
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-8, atol=1e-8)


def test_each_sample_stops_at_its_own_degree() -> None:
    """As many products as the sample's matrix has distinct eigenvalues (a happy breakdown)."""
    gain = torch.tensor(
        [[0.5] * 6, [0.5, 0.5, 0.5, -0.5, -0.5, -0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]],
        dtype=torch.float64,
    )
    shift = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    # No tolerance to meet early: the breakdown alone ends the cycle, and the check is exact.
    solution = dk.GMRES(max_steps=30, rtol=0.0, atol=1e-14)(
        lambda w: gain * w + shift, torch.zeros(3, 6, dtype=torch.float64)
    )
    assert solution.converged.all()
    assert solution.steps.tolist() == [3, 4, 8]
    torch.testing.assert_close(solution.z, shift / (1 - gain), rtol=1e-13, atol=1e-13)


def test_a_breakdown_ends_the_cycle_whatever_the_tolerance() -> None:
    """Past the degree of the sample's matrix a cycle would go on with rounding errors."""
    gain = torch.tensor([0.5, 0.5, 0.5, -0.5, -0.5, -0.5], dtype=torch.float64)
    points: list[Tensor] = []

    def recorded(w: Tensor) -> Tensor:
        points.append(w.clone())
        return gain * w + 1.0

    dk.GMRES(max_steps=6, rtol=0.0)(recorded, torch.zeros(1, 6, dtype=torch.float64))
    torch.testing.assert_close(points[3][0], 1 / (1 - gain), rtol=1e-13, atol=1e-13)


def test_a_second_product_that_is_not_finite_is_divergence() -> None:
    """The first one ends its cycle early, with a check of what it had."""
    problem = Affine.random(1, 10, 0.9)
    evaluations: list[int] = []

    def failing(w: Tensor) -> Tensor:
        evaluations.append(len(evaluations))
        return problem(w) * (torch.nan if evaluations[-1] in (3, 6) else 1.0)

    z0 = torch.zeros(1, 10, dtype=torch.float64)
    solution = dk.GMRES(max_steps=30, rtol=1e-10)(failing, z0)
    assert solution.status == dk.Status.DIVERGED
    assert solution.steps == 7
    # Evaluation 4 is the check: two products were taken in, and predicted its residual.
    torch.testing.assert_close(solution.trace[0, 4], solution.trace[0, 2])
    assert solution.residual == solution.trace[0, 4]


@pytest.mark.parametrize("consistent", [True, False])
def test_singular_systems_end(consistent: bool) -> None:
    """I − A with a null space: solved where it can be, else the least residual and its status."""
    gain = torch.tensor([1.0, 0.5, -2.0, 0.9], dtype=torch.float64)
    shift = torch.tensor([0.0 if consistent else 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    solution = dk.GMRES(max_steps=60, rtol=1e-10)(
        lambda w: gain * w + shift, torch.zeros(1, 4, dtype=torch.float64)
    )
    assert solution.z.isfinite().all()
    if consistent:
        assert solution.converged.all()
        torch.testing.assert_close(solution.z[0, 1:], (shift / (1 - gain))[1:])
    else:
        assert solution.status == dk.Status.STALLED
        assert solution.residual >= 1.0


def test_nilpotent_maps_take_the_hard_way() -> None:
    """A shift: the residual does not fall before the last product."""
    dim = 6
    shift = torch.diag(torch.ones(dim - 1, dtype=torch.float64), -1)
    cyclic = shift.clone()
    cyclic[0, -1] = 1.0
    # M = I − A is cyclic, the standard example of stagnation.
    problem = Affine(torch.eye(dim).double() - cyclic, torch.eye(dim).double()[:1])
    solution = dk.GMRES(max_steps=20, rtol=1e-10)(problem, torch.zeros(1, dim).double())
    torch.testing.assert_close(solution.trace[0, :dim], torch.ones(dim).double())
    assert solution.converged.all()
    assert solution.steps == dim + 2


def test_the_start_matters() -> None:
    problem = Affine.random(2, 15, 0.9)
    exact = problem.solution()
    at_once = dk.GMRES(rtol=1e-10)(problem, exact)
    assert at_once.steps.tolist() == [1, 1]
    near = dk.GMRES(rtol=1e-10)(problem, exact + 1e-8 * torch.randn(2, 15))
    far = dk.GMRES(rtol=1e-10)(problem, exact + torch.randn(2, 15))
    assert near.converged.all()
    assert (near.steps < far.steps).all()


def test_a_start_far_from_a_small_solution() -> None:
    """The relative tolerance is that of ‖f(w)‖ at the minimiser, not at the start."""
    problem = replace(Affine.random(1, 8, 0.5), bias=torch.full((1, 8), 1e-6).double())
    z0 = torch.full((1, 8), 1e3).double()
    solution = dk.GMRES(max_steps=40, rtol=1e-4)(problem, z0)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-2, atol=1e-9)


def test_a_map_that_is_not_affine_gets_an_honest_status() -> None:
    problem = Tanh.random(3, 10, 1.5)
    z0 = torch.randn(3, 10, dtype=torch.float64)
    solution = dk.GMRES(max_steps=14, rtol=1e-10)(problem, z0)
    residual = (problem(solution.z) - solution.z).norm(dim=1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-9, atol=1e-12)
    assert not solution.converged.any()
    # What the cycles predicted is far below what the checks found.
    assert (solution.trace.nan_to_num(torch.inf).amin(dim=1) < 0.1 * residual).all()


def test_the_last_evaluation_is_a_check() -> None:
    problem = Affine.random(1, 30, 0.95)
    z0 = torch.randn(1, 30, dtype=torch.float64)
    points: list[Tensor] = []

    def recorded(w: Tensor) -> Tensor:
        points.append(w.clone())
        return problem(w)

    for max_steps in (2, 3, 4, 9):
        points.clear()
        solution = dk.GMRES(max_steps=max_steps, rtol=0.0, restart=4)(recorded, z0)
        assert solution.steps == max_steps == len(points)
        assert torch.equal(solution.z, points[-1])
        assert solution.status == dk.Status.MAX_STEPS
    points.clear()
    dk.GMRES(max_steps=2, rtol=0.0)(recorded, z0)
    torch.testing.assert_close(points[1], problem(z0))


def test_loses_no_digits_to_large_offsets() -> None:
    """A residual far below ‖f(w₀)‖ at the start of a cycle still gives clean products."""
    problem = Affine.random(1, 25, 0.9)
    solution = dk.GMRES(max_steps=120, rtol=1e-15, restart=6, stall_steps=None)(
        problem, torch.zeros(1, 25, dtype=torch.float64)
    )
    assert solution.residual <= 2e-15 * problem.solution().norm()


@pytest.mark.parametrize("norm", [0.9, 2.0])
def test_as_the_solver_of_the_implicit_gradient(norm: float) -> None:
    """(I − Jᵀ)⁻¹ ℓ on a tanh map, also where Picard's iteration for it diverges."""
    torch.manual_seed(1)
    weight = matrix_of_norm(16, norm).requires_grad_()
    bias = torch.randn(4, 16, dtype=torch.float64)
    solves: list[dk.Solution] = []

    def cell(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight.T + bias)

    layer = dk.DEQ(
        cell,
        solver=dk.Broyden(max_steps=200, rtol=1e-12, stall_steps=None),
        gradient=dk.Implicit(solver=dk.GMRES(rtol=1e-12), on_solve=solves.append),
    )
    z = layer(torch.zeros(4, 16, dtype=torch.float64))
    cotangent = 1e9 * torch.randn(4, 16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(z, weight, cotangent)
    assert solves[0].converged.all()
    assert solves[0].steps.max() <= 18

    leaf = z.detach()
    inner = torch.stack(
        [torch.autograd.functional.jacobian(cell, leaf)[b, :, b] for b in range(4)]
    ).detach()
    w = torch.linalg.solve(torch.eye(16).double() - inner.mT, cotangent[:, :, None])[:, :, 0]
    (expected,) = torch.autograd.grad(cell(leaf), weight, w)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8 * cotangent.abs().max())


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="restart must be a whole number, at least 1; got 0"):
        dk.GMRES(restart=0)
