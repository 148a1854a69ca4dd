"""Adjoint Broyden against its formula in dense matrices, and what outer-problem awareness buys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.problems import Affine, Map, Tanh

Vector = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DenseAdjointBroyden:
    """One sample with a dense H in float64: SHINE's equations 7 and 8, word for word."""

    iterates: list[Tensor]
    residuals: list[Tensor]
    inverse: Tensor

    @classmethod
    def run(
        cls,
        f: Map,
        z0: Tensor,
        steps: int,
        *,
        opa_every: int | None = None,
        outer_gradient: Vector | None = None,
        damping: float = 1.0,
        gamma: float = 1.0,
    ) -> DenseAdjointBroyden:
        eye = torch.eye(z0.numel(), dtype=z0.dtype)
        z, inverse = z0.clone(), -gamma * eye
        iterates, residuals = [z], [f(z) - z]
        for n in range(1, steps + 1):
            z = z - damping * inverse @ residuals[-1]
            residual = f(z) - z
            jacobian = torch.autograd.functional.jacobian(f, z) - eye
            sigmas = [lambda h, r=residual: r]
            if opa_every is not None and n % opa_every == 0:
                assert outer_gradient is not None
                sigmas.append(lambda h, z=z: outer_gradient(z) @ h)
            for make in sigmas:
                sigma = make(inverse)
                b = inverse.T @ jacobian.T @ sigma
                inverse = inverse + torch.outer(inverse @ sigma, sigma - b) / (b @ sigma)
                # The adjoint tangent condition σᵀ B⁺ = σᵀ J_r.
                torch.testing.assert_close(
                    sigma @ torch.linalg.inv(inverse), sigma @ jacobian, rtol=1e-4, atol=1e-6
                )
            iterates.append(z)
            residuals.append(residual)
        return cls(iterates, residuals, inverse)


def dense(inverse: dk.InverseJacobian, sample: int, batch: int, dim: int) -> Tensor:
    """H of one sample, from its products with unit vectors."""
    columns = torch.eye(dim, dtype=torch.float64).expand(batch, -1, -1)
    product, transposed = inverse.matvec(columns)[sample], inverse.rmatvec(columns)[sample]
    torch.testing.assert_close(product.T, transposed)
    return product.T


def pull(z: Tensor) -> Tensor:
    """A gradient of an outer loss that changes with the iterate."""
    return torch.cos(3 * z) + 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"damping": 0.7},
        {"gamma": 0.8},
        {"opa_every": 1, "outer_gradient": pull},
        {"opa_every": 3, "outer_gradient": pull},
    ],
)
@pytest.mark.parametrize("norm", [0.6, 1.4])
def test_follows_the_dense_formula(norm: float, options: dict[str, Any]) -> None:
    problem = Tanh.random(3, 12, norm)
    z0 = torch.randn(3, 12, dtype=torch.float64)
    points: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        points.append(z.detach().clone())
        return problem(z)

    solution = dk.AdjointBroyden(max_steps=8, rtol=0.0, **options)(recorded, z0)
    for sample in range(3):
        oracle = DenseAdjointBroyden.run(problem.sample(sample), z0[sample], 7, **options)
        for point, expected in zip(points, oracle.iterates, strict=True):
            torch.testing.assert_close(point[sample], expected, rtol=1e-7, atol=1e-9)
        norms = torch.stack([r.norm() for r in oracle.residuals])
        torch.testing.assert_close(solution.trace[sample], norms, rtol=1e-6, atol=1e-9)
        assert solution.inverse_jacobian is not None
        torch.testing.assert_close(
            dense(solution.inverse_jacobian, sample, 3, 12), oracle.inverse, rtol=1e-6, atol=1e-7
        )
    extra = 7 // options["opa_every"] if "opa_every" in options else 0
    assert solution.inverse_jacobian.rank.tolist() == [7 + extra] * 3


def test_heredity_on_an_affine_map() -> None:
    """All tangent conditions hold at once where J is constant, so d steps solve any map."""
    problem = Affine.random(3, 9, 3.0)
    solution = dk.AdjointBroyden(max_steps=24, rtol=1e-9, stall_steps=None)(
        problem, torch.zeros(3, 9, dtype=torch.float64)
    )
    assert solution.converged.all()
    # One product with Jᵀ a step teaches as much as two evaluations of f do good Broyden.
    assert solution.steps.max() <= 9 + 3
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("norm", [0.5, 1.0, 1.5])
def test_tanh_maps(norm: float) -> None:
    problem = Tanh.random(4, 40, norm)
    solution = dk.AdjointBroyden(max_steps=100, rtol=1e-9, stall_steps=None)(
        problem, torch.zeros(4, 40, dtype=torch.float64)
    )
    assert solution.converged.all()
    residual = (problem(solution.z) - solution.z).norm(dim=1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-6, atol=1e-14)


def test_opa_inverts_in_the_direction_of_the_outer_gradient() -> None:
    """‖ℓᵀ (H − J_r⁻¹)‖ at the solution falls by far more than without (SHINE, theorem 4)."""
    problem = Tanh.random(6, 40, 0.9)
    z0 = torch.zeros(6, 40, dtype=torch.float64)
    errors = {}
    for opa_every in (None, 5, 1):
        outer = {} if opa_every is None else {"opa_every": opa_every, "outer_gradient": pull}
        solution = dk.AdjointBroyden(max_steps=60, rtol=1e-10, **outer)(problem, z0)
        assert solution.converged.all()
        cotangent = pull(solution.z)
        found = solution.inverse_jacobian.rmatvec(cotangent)
        slope = 1 - torch.tanh(solution.z @ problem.weight.T + problem.bias).square()
        jacobian = slope[:, :, None] * problem.weight - torch.eye(40, dtype=torch.float64)
        exact = torch.linalg.solve(jacobian.mT, cotangent[:, :, None])[:, :, 0]
        errors[opa_every] = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert (errors[5] < 0.3 * errors[None]).all()
    assert (errors[1] < 1e-2 * errors[None]).all()


def test_shine_with_opa_in_a_layer() -> None:
    """The gradient that a layer hands on tends to the exact one."""
    torch.manual_seed(2)
    problem = Tanh.random(4, 30, 0.8)
    weight = problem.weight.clone().requires_grad_()
    target = torch.randn(4, 30, dtype=torch.float64)

    def cell(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight.T + problem.bias)

    def outer(z: Tensor) -> Tensor:
        z = z.requires_grad_()
        (gradient,) = torch.autograd.grad((z - target).square().sum(), z)
        return gradient

    def gradient_of(solver: dk.Solver, gradient: dk.Gradient) -> Tensor:
        z = dk.DEQ(cell, solver=solver, gradient=gradient)(torch.zeros_like(target))
        (found,) = torch.autograd.grad((z - target).square().sum(), weight)
        return found

    options = {"max_steps": 60, "rtol": 1e-10}
    exact = gradient_of(dk.Broyden(**options), dk.Implicit(solver=dk.GMRES(rtol=1e-12)))
    plain = gradient_of(dk.AdjointBroyden(**options), dk.Shine())
    aware = gradient_of(dk.AdjointBroyden(**options, opa_every=1, outer_gradient=outer), dk.Shine())
    assert (aware - exact).norm() < 1e-2 * (plain - exact).norm()
    assert (aware - exact).norm() < 1e-3 * exact.norm()


def test_a_full_history_starts_again() -> None:
    """H is then that of a fresh solve from the iterate before, with its newest update."""
    problem = Tanh.random(1, 14, 0.9)
    z0 = torch.zeros(1, 14, dtype=torch.float64)
    solution = dk.AdjointBroyden(max_steps=6, rtol=0.0, history_length=3)(problem, z0)
    # Evaluations 1 to 3 fill the history, 4 empties it first; the last one stops.
    assert solution.inverse_jacobian.rank.tolist() == [2]
    solved = dk.AdjointBroyden(max_steps=60, rtol=1e-8, history_length=2)(problem, z0)
    assert solved.converged.all()


def test_f_must_be_differentiable() -> None:
    for f in (
        lambda z: (0.5 * z + 1.0).detach(),
        lambda z: torch.ones_like(z, requires_grad=True) + 0.5 * z.detach(),
    ):
        with pytest.raises(RuntimeError, match="autograd finds no way from f"):
            dk.AdjointBroyden(max_steps=5, rtol=1e-9)(f, torch.zeros(1, 3))


def test_nothing_of_the_recording_is_left() -> None:
    """No graph reaches the solution, and parameters of f receive no gradient."""
    weight = (0.3 * torch.eye(5)).requires_grad_()
    solution = dk.AdjointBroyden(max_steps=10)(lambda z: z @ weight + 1.0, torch.zeros(2, 5))
    assert not solution.z.requires_grad
    assert not solution.inverse_jacobian.u.requires_grad
    assert weight.grad is None


def test_degenerate_updates_are_left_out() -> None:
    """J_rᵀσ = 0 would divide by zero: the sample keeps its H."""
    solution = dk.AdjointBroyden(max_steps=4, rtol=0.0)(
        lambda z: z + 1.0, torch.zeros(1, 3, dtype=torch.float64)
    )
    assert solution.inverse_jacobian.rank.tolist() == [0]
    assert solution.z.isfinite().all()


def test_options_out_of_range() -> None:
    for options, message in (
        ({"history_length": 0}, "history_length must be a whole number, at least 1"),
        ({"opa_every": 0, "outer_gradient": pull}, "opa_every must be a whole number, at least 1"),
        ({"opa_every": 2}, "got opa_every without outer_gradient"),
        ({"outer_gradient": pull}, "got outer_gradient without opa_every"),
        ({"damping": 0.0}, "damping must be above 0"),
        ({"gamma": 0.0}, "gamma must be finite and above 0"),
        ({"cuda_graph": True}, "AdjointBroyden must have cuda_graph=False"),
    ):
        with pytest.raises(ValueError, match=message):
            dk.AdjointBroyden(**options)


@pytest.mark.parametrize(
    ("outer_gradient", "error", "message"),
    [
        (lambda z: z[:, :2], ValueError, r"must return the shape it takes, \[1, 3\]; got"),
        (lambda z: (z,), TypeError, "outer_gradient must return what it takes, one tensor; got a"),
        (lambda z: z.double(), TypeError, "outer_gradient must return the dtype and device"),
        (lambda z: None, TypeError, r"outer_gradient\(z\) must be a tensor"),
    ],
)
def test_wrong_outer_gradients_are_named(
    outer_gradient: Any, error: type[Exception], message: str
) -> None:
    solver = dk.AdjointBroyden(max_steps=5, opa_every=1, outer_gradient=outer_gradient)
    with pytest.raises(error, match=message):
        solver(lambda z: 0.5 * torch.sin(z) + 1.0, torch.zeros(1, 3))
