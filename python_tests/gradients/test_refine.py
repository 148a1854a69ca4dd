"""A few Broyden steps on the adjoint equation, against dense matrices."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.gradients import AdjointGradient
from python_tests.gradients.adjoint_problem import AdjointProblem
from python_tests.gradients.tanh_layer import TIGHT, assert_gradients, parameter_gradients, solved

STEPS = (1, 2, 3, 4, 5)


def dense_steps(
    jacobian: Tensor, cotangent: Tensor, start: Tensor, inverse: Tensor, steps: int
) -> Tensor:
    """Textbook Broyden on r(w) = Jᵀw + ℓ − w, from `start` and an initial inverse."""
    w = start
    residual = jacobian.T @ w + cotangent - w
    for _ in range(steps):
        s = -inverse @ residual
        w = w + s
        new = jacobian.T @ w + cotangent - w
        y = new - residual
        inverse = inverse + torch.outer(s - inverse @ y, s @ inverse) / (s @ inverse @ y)
        residual = new
    return w


def expected(problem: AdjointProblem, starts: Tensor, inverses: Tensor, steps: int) -> Tensor:
    parts = (problem.jacobians, problem.cotangent, starts, inverses)
    return torch.stack([dense_steps(*part, steps) for part in zip(*parts, strict=True)])


def negative_identity(problem: AdjointProblem) -> Tensor:
    batch, dim = problem.cotangent.shape
    return -torch.eye(dim, dtype=torch.float64).expand(batch, dim, dim)


@pytest.mark.parametrize("steps", STEPS)
def test_shine_is_seeded_with_the_transposed_inverse(steps: int) -> None:
    problem = AdjointProblem.of([0.3, 0.4, 0.5], 30)
    w = dk.Shine(refine=steps).adjoint(problem.cotangent, problem.vjp, problem.inverse)
    seeds = problem.transposed_inverse()
    starts = -torch.einsum("bij,bj->bi", seeds, problem.cotangent)
    target = expected(problem, starts, seeds, steps)
    torch.testing.assert_close(w, target, rtol=1e-9, atol=1e-10)
    assert problem.calls == steps
    untransposed = expected(problem, starts, seeds.mT, steps)
    assert (w - untransposed).norm() > 1e-4 * w.norm()


@pytest.mark.parametrize("steps", STEPS)
def test_samples_that_fell_back_are_refined_without_the_inverse(steps: int) -> None:
    problem = AdjointProblem.of([0.3, 0.5, 0.3], 30)
    seeds = problem.transposed_inverse()
    starts = -torch.einsum("bij,bj->bi", seeds, problem.cotangent)
    ratios = starts.norm(dim=1) / problem.cotangent.norm(dim=1)
    order = ratios.argsort()
    fallback = ratios[order[1:]].mean().item()  # one sample is above
    fallen = order[2]
    starts[fallen] = problem.cotangent[fallen]
    seeds[fallen] = negative_identity(problem)[0]
    gradient = dk.Shine(fallback=fallback, refine=steps)
    w = gradient.adjoint(problem.cotangent, problem.vjp, problem.inverse)
    target = expected(problem, starts, seeds, steps)
    torch.testing.assert_close(w, target, rtol=1e-9, atol=1e-10)


def test_a_sample_with_a_broken_inverse_falls_back() -> None:
    problem = AdjointProblem.of([0.4, 0.4], 12)
    inverse = dk.LowRankInverse.empty(2, 1, 12, dtype=torch.float64)
    inverse.u.zero_()
    inverse.v.zero_()
    inverse.rank.fill_(1)
    inverse.u[1, 0, 0] = torch.nan
    w = dk.Shine(fallback=1.3, refine=3).adjoint(problem.cotangent, problem.vjp, inverse)
    target = expected(problem, problem.cotangent, negative_identity(problem), 3)
    torch.testing.assert_close(w, target, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("steps", STEPS)
def test_jacobian_free_starts_from_the_cotangent(steps: int) -> None:
    problem = AdjointProblem.of([0.3, 0.4, 0.5], 30)
    w = dk.JacobianFree(refine=steps).adjoint(problem.cotangent, problem.vjp, None)
    target = expected(problem, problem.cotangent, negative_identity(problem), steps)
    torch.testing.assert_close(w, target, rtol=1e-9, atol=1e-10)
    assert problem.calls == steps


@pytest.mark.parametrize("steps", STEPS)
def test_limited_starts_from_zero(steps: int) -> None:
    """The residual at zero is known, so the last step needs no product of its own."""
    problem = AdjointProblem.of([0.3, 0.4, 0.5], 30)
    w = dk.Limited(steps=steps).adjoint(problem.cotangent, problem.vjp, None)
    zeros = torch.zeros_like(problem.cotangent)
    target = expected(problem, zeros, negative_identity(problem), steps)
    torch.testing.assert_close(w, target, rtol=1e-9, atol=1e-10)
    assert problem.calls == steps - 1


def test_one_limited_step_is_jacobian_free() -> None:
    problem = AdjointProblem.of([0.5, 1.5], 10)
    w = dk.Limited(steps=1).adjoint(problem.cotangent, problem.vjp, None)
    assert torch.equal(w, problem.cotangent)


@pytest.mark.parametrize(
    "kind", [lambda n: dk.Limited(steps=n), lambda n: dk.JacobianFree(refine=n)]
)
def test_the_error_falls_with_the_steps(kind) -> None:
    problem = AdjointProblem.of([0.5, 0.7, 0.9], 40)
    exact = problem.solution()
    errors = []
    for steps in (1, 2, 5, 10, 20, 60):
        w = kind(steps).adjoint(problem.cotangent, problem.vjp, None)
        errors.append((w - exact).norm(dim=1))
    for before, after in pairwise(errors):
        assert (after < before).all()
    assert (errors[-1] < 1e-8 * exact.norm(dim=1)).all()


@pytest.mark.parametrize("steps", [1, 3, 6, 9])
def test_a_residual_that_grew_is_not_stepped_from(steps: int) -> None:
    """On expansive maps the residual rises and falls; what is returned is never above its least."""
    problem = AdjointProblem.of([3.0, 4.0, 5.0, 6.0], 20)
    iterates: list[Tensor] = []

    def watched(w: Tensor) -> Tensor:
        iterates.append(w.clone())
        return problem.vjp(w)

    w = dk.JacobianFree(refine=steps).adjoint(problem.cotangent, watched, None)
    # The powers of two that the equation is solved with leave residuals as they are, relatively.
    scale = (problem.cotangent / iterates[0])[:, :1]
    seen = torch.stack([problem.residual(scale * iterate) for iterate in iterates])
    last_is_least = seen[-1] == seen.min(dim=0).values
    stepped = (w - scale * iterates[-1]).norm(dim=1) > 1e-9
    for sample in range(4):
        if not last_is_least[sample]:
            best = iterates[int(seen[:, sample].argmin())][sample] * scale[sample]
            assert torch.equal(w[sample], best)
        else:
            assert stepped[sample]
    if steps > 1:
        assert not last_is_least.all()


def test_refined_gradients_reach_everything() -> None:
    cell, x, layer, z0, cotangent = solved(dk.Shine(refine=4))
    z = layer(z0, x)
    inverse = TIGHT(lambda v: cell(v, x), z0).inverse_jacobian
    problem = AdjointProblem(cell.jacobians(z.detach(), x).detach(), cotangent, inverse)
    z.backward(cotangent)
    w = dk.Shine(refine=4).adjoint(cotangent, problem.vjp, inverse)
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-9)


@pytest.mark.parametrize(
    "gradient",
    [dk.Limited(steps=3), dk.JacobianFree(refine=3), dk.Shine(refine=3), dk.Adaptive()],
    ids=lambda g: type(g).__name__,
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_shows(gradient: AdjointGradient, value: float) -> None:
    """w is not finite in its sample, and untouched in the others; never a silent zero."""
    problem = AdjointProblem.of([0.4, 0.4, 0.4], 10)
    clean = gradient.adjoint(problem.cotangent, problem.vjp, problem.inverse)
    problem.cotangent[1, 3] = value
    w = gradient.adjoint(problem.cotangent, problem.vjp, problem.inverse)
    assert not w[1].isfinite().all()
    assert torch.equal(w[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("refine", [-1, 1.5, True, None])
@pytest.mark.parametrize("kind", [dk.Shine, dk.JacobianFree])
def test_numbers_of_steps_that_cannot_be(kind: type, refine: object) -> None:
    with pytest.raises(ValueError, match="refine must be a whole number, at least 0"):
        kind(refine=refine)


@pytest.mark.parametrize("steps", [0, 2.0])
def test_limited_takes_a_step(steps: object) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number, at least 1"):
        dk.Limited(steps=steps)
