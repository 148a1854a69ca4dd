"""SHINE refined to a tolerance, on equations that dense algebra solves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.gradients.adjoint_problem import AdjointProblem
from python_tests.gradients.tanh_layer import assert_gradients, parameter_gradients, solved

NORMS = [0.2, 0.5, 0.8, 0.95, 1.5, 3.0]


def refined(
    problem: AdjointProblem, tolerance: float = 1e-3, max_steps: int = 60
) -> tuple[Tensor, dk.Solution]:
    seen: list[dk.Solution] = []
    gradient = dk.Adaptive(tolerance=tolerance, max_steps=max_steps, on_solve=seen.append)
    w = gradient.adjoint(problem.cotangent, problem.vjp, problem.inverse)
    (solution,) = seen
    return w, solution


def shine(problem: AdjointProblem) -> Tensor:
    return dk.Shine().adjoint(problem.cotangent, problem.vjp, problem.inverse)


def low_rank(problem: AdjointProblem, pairs: dict[int, tuple[float, float]]) -> AdjointProblem:
    """The problem with H = −I, but for the samples named: −I + u e₁ e₁ᵀ scaled as they say."""
    batch, dim = problem.cotangent.shape
    dtype = problem.cotangent.dtype
    inverse = dk.LowRankInverse.empty(batch, 1, dim, dtype=dtype)
    inverse.u.zero_()
    inverse.v.zero_()
    for sample, (u, v) in pairs.items():
        inverse.rank[sample] = 1
        inverse.u[sample, 0, 0] = u
        inverse.v[sample, 0, 0] = v
    return replace(problem, inverse=inverse, calls=0)


@pytest.mark.parametrize("tolerance", [0.3, 1e-3, 1e-9])
@pytest.mark.parametrize("steps", [1, 6, 25])
def test_every_sample_is_within_the_tolerance(tolerance: float, steps: int) -> None:
    """Contractive and expansive, whatever the forward solve knew; measured independently."""
    problem = AdjointProblem.of(NORMS, 40, steps=steps)
    w, solution = refined(problem, tolerance)
    residual = problem.residual(w)
    assert (residual <= tolerance).all()
    assert solution.converged.all()
    torch.testing.assert_close(solution.residual, residual, rtol=1e-4, atol=1e-13)
    assert torch.equal(solution.z, w)
    assert problem.calls == solution.steps.max()
    assert solution.evaluations == len(NORMS) * problem.calls


def test_samples_within_the_tolerance_keep_their_bits() -> None:
    problem = AdjointProblem.of([0.1, 0.2, 0.9, 0.95], 40)
    start = shine(problem)
    before = problem.residual(start)
    tolerance = before.sort().values[1:3].mean().item()
    kept = before <= tolerance
    assert kept.sum() == 2
    w, solution = refined(problem, tolerance)
    assert torch.equal(w[kept], start[kept])
    assert (solution.steps[kept] == 1).all()
    assert (solution.steps[~kept] > 1).all()
    assert (problem.residual(w) <= tolerance).all()
    torch.testing.assert_close(solution.trace[:, 0], before, rtol=1e-9, atol=0.0)


def test_one_product_where_shine_suffices() -> None:
    problem = AdjointProblem.of([1e-3, 1e-4], 20, steps=10)
    w, solution = refined(problem)
    assert problem.calls == 1
    assert torch.equal(w, shine(problem))
    assert (solution.residual <= 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    problem = AdjointProblem.of(NORMS, 33, dtype=dtype)
    w, together = refined(problem)
    tensors, rebuild = problem.inverse.unbind()
    for sample in range(len(NORMS)):
        rows = slice(sample, sample + 1)
        alone = AdjointProblem(
            problem.jacobians[rows],
            problem.cotangent[rows],
            rebuild(*(tensor[rows].contiguous() for tensor in tensors)),
        )
        w_alone, solution = refined(alone)
        assert torch.equal(w_alone, w[rows])
        assert solution.steps == together.steps[sample]


@pytest.mark.parametrize("seed", range(20))
def test_the_stated_bounds_hold(seed: int) -> None:
    torch.manual_seed(seed)
    contraction = [0.3, 0.6, 0.9, 0.99]
    problem = AdjointProblem.of(contraction, 24, steps=4)
    tolerance = 10.0 ** (-seed % 4)
    tolerance = min(tolerance, 0.5)
    w, _ = refined(problem, tolerance)
    exact = problem.solution()
    error = (w - exact).norm(dim=1)
    length = problem.cotangent.norm(dim=1)
    singular = torch.linalg.svdvals(problem.matrix())
    largest, smallest = singular[:, 0], singular[:, -1]
    rate = torch.tensor(contraction, dtype=torch.float64)
    assert (error <= tolerance * length / smallest).all()
    assert (error <= tolerance * largest / smallest * exact.norm(dim=1)).all()
    assert (error <= tolerance * length / (1 - rate)).all()
    assert (error <= tolerance * (1 + rate) / (1 - rate) * exact.norm(dim=1)).all()


def test_fewer_products_than_without_the_inverse() -> None:
    problem = AdjointProblem.of([0.95, 1.2], 60, steps=40)
    _, seeded = refined(problem, 1e-6)
    _, unseeded = refined(low_rank(problem, {}), 1e-6)
    assert (1.5 * seeded.steps <= unseeded.steps).all()


def test_bad_estimates_are_overcome() -> None:
    """Not finite, far too large, or blind to a direction: hardly worse than no estimate at all."""
    plain = AdjointProblem.of([0.6] * 5, 16)
    pairs = {1: (torch.nan, 1.0), 2: (1e8, 1.0), 3: (1.0, 1.0), 4: (torch.inf, 1.0)}
    problem = low_rank(plain, pairs)
    assert (problem.residual(shine(problem))[1:] > 1).logical_not().sum() == 3
    w, solution = refined(problem)
    assert solution.converged.all()
    assert (problem.residual(w) <= 1e-3).all()
    _, unseeded = refined(low_rank(plain, {}))
    harmless = [0, 1, 2, 4]
    assert (solution.steps[harmless] <= unseeded.steps[harmless] + 3).all()
    assert solution.steps[3] <= 16 + 2  # the directions that P can give, one that it cannot


def test_an_estimate_of_zero_is_overcome() -> None:
    problem = AdjointProblem.of([0.5], 1)
    problem = low_rank(problem, {0: (1.0, 1.0)})
    assert shine(problem) == 0
    w, solution = refined(problem)
    assert solution.converged.all()
    torch.testing.assert_close(w, problem.solution(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dim", [2, 6])
def test_no_standstill_where_residual_and_image_are_orthogonal(dim: int) -> None:
    """I − J skew: the first step along r gains nothing."""
    skew = torch.zeros(1, dim, dim, dtype=torch.float64)
    for i in range(0, dim, 2):
        skew[0, i, i + 1], skew[0, i + 1, i] = i + 1.0, -i - 1.0
    eye = torch.eye(dim, dtype=torch.float64)
    plain = AdjointProblem.of([1.0], dim)
    problem = low_rank(replace(plain, jacobians=eye - skew), {})
    w, solution = refined(problem, 1e-10)
    assert solution.converged.all()
    assert (problem.residual(w) <= 1e-10).all()
    assert solution.steps <= dim + 2


def test_a_sample_without_loss_is_solved_by_zero() -> None:
    problem = AdjointProblem.of([0.5, 0.5], 10)
    problem.cotangent[0] = 0.0
    w, solution = refined(problem)
    assert not w[0].any()
    assert solution.converged.all()
    assert solution.residual[0] == 0
    assert solution.steps[0] == 1


def test_what_is_not_finite_is_said_to_have_diverged() -> None:
    """With w = ℓ, which lets a loss that is not finite be seen, and no gradient vanish."""
    problem = AdjointProblem.of([0.5, 0.5, 0.5], 10)
    clean, _ = refined(problem)
    problem.cotangent[0, 2] = torch.inf
    problem.jacobians[1, 3, 3] = torch.nan
    w, solution = refined(problem)
    assert solution.status.tolist() == [
        dk.Status.DIVERGED,
        dk.Status.DIVERGED,
        dk.Status.CONVERGED,
    ]
    torch.testing.assert_close(w[:2], problem.cotangent[:2], rtol=0.0, atol=0.0)
    assert solution.residual[:2].isnan().all()
    assert torch.equal(w[2], clean[2])


@pytest.mark.parametrize("max_steps", [1, 2, 5])
def test_the_products_are_limited(max_steps: int) -> None:
    problem = AdjointProblem.of([0.9, 3.0], 40, steps=3)
    w, solution = refined(problem, 1e-6, max_steps)
    assert problem.calls == max_steps
    assert (solution.status == dk.Status.MAX_STEPS).all()
    residual = problem.residual(w)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-9, atol=0.0)
    assert (residual <= problem.residual(shine(problem))).all()
    assert (residual < 1).all()


def test_one_product_in_16_bits_leaves_shine() -> None:
    """The only w whose residual is known; ℓ where that is worse than none."""
    problem = AdjointProblem.of([0.3, 4.0], 30, steps=3, dtype=torch.bfloat16)
    w, solution = refined(problem, 1e-3, 1)
    start = shine(problem)
    before = problem.residual(start)
    assert before[0] < 1 < before[1]
    assert torch.equal(w, torch.stack((start[0], problem.cotangent[1])))
    torch.testing.assert_close(solution.residual[0], before[0], rtol=2e-2, atol=0.0)
    assert solution.residual[1].isnan()
    assert (solution.status == dk.Status.MAX_STEPS).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_every_backend(backend: str) -> None:
    problem = AdjointProblem.of([0.5, 1.5], 30, dtype=torch.float32)
    with dk.use_backend(backend):
        w, solution = refined(problem)
    assert solution.converged.all()
    assert (problem.residual(w) <= 1e-3).all()


def test_singular_equations_end() -> None:
    """J = I in one direction: the residual has a part that nothing can reduce."""
    problem = AdjointProblem.of([0.5], 12)
    problem.jacobians[0] = 0.5 * torch.eye(12, dtype=torch.float64)
    problem.jacobians[0, 0, 0] = 1.0
    problem.cotangent.fill_(1.0)
    problem = low_rank(problem, {})
    w, solution = refined(problem, 1e-6)
    assert solution.status == dk.Status.STALLED
    torch.testing.assert_close(problem.residual(w), solution.residual, rtol=1e-9, atol=0.0)
    assert problem.calls < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tolerance", [0.1, 1e-3, 1e-6])
def test_residuals_are_true_in_every_precision(dtype: torch.dtype, tolerance: float) -> None:
    """What rounding keeps out of reach is not claimed, and ends the refinement."""
    problem = AdjointProblem.of([0.5, 0.9, 1.5], 40, dtype=dtype)
    w, solution = refined(problem, tolerance, 100)
    assert w.dtype == dtype
    unit = torch.finfo(dtype).eps
    tolerance = max(tolerance, unit)
    assert solution.rtol == tolerance
    noise = 4 * unit * w.double().norm(dim=1) / problem.cotangent.double().norm(dim=1)
    residual = problem.residual(w)
    assert ((residual - solution.residual).abs() <= noise).all()
    reached = residual <= tolerance + noise
    assert torch.equal(solution.converged & reached, solution.converged)
    assert (solution.converged | (solution.status == dk.Status.STALLED)).all()
    assert (residual <= tolerance + 10 * noise).all()
    assert problem.calls < 60
    if tolerance > 2 * noise.max().item():
        assert solution.converged.all()


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_the_size_of_the_loss_does_not_matter(scale: float) -> None:
    problem = AdjointProblem.of([0.5, 0.9], 20, dtype=torch.float32)
    w, plain = refined(problem)
    power = 2.0 ** torch.tensor(scale).log2().round().item()
    problem.cotangent *= power
    scaled, solution = refined(problem)
    torch.testing.assert_close(scaled, w * power, rtol=1e-6, atol=0.0)
    assert torch.equal(solution.steps, plain.steps)


def test_an_empty_batch() -> None:
    problem = AdjointProblem.of([0.5], 4)
    tensors, rebuild = problem.inverse.unbind()
    empty = AdjointProblem(
        problem.jacobians[:0],
        problem.cotangent[:0],
        rebuild(*(tensor[:0].contiguous() for tensor in tensors)),
    )
    gradient = dk.Adaptive()
    assert gradient.adjoint(empty.cotangent, lambda w: w, empty.inverse).shape == (0, 4)


def test_through_the_layer() -> None:
    seen: list[dk.Solution] = []
    cell, x, layer, z0, cotangent = solved(dk.Adaptive(tolerance=1e-10, on_solve=seen.append))
    z = layer(z0, x)
    z.backward(cotangent)
    w = cell.adjoint(z.detach(), x.detach(), cotangent)
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-8)
    assert seen[0].converged.all()


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1e-3, torch.nan, torch.inf])
def test_tolerances_that_cannot_be(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be above 0 and below 1"):
        dk.Adaptive(tolerance=tolerance)


def test_other_options() -> None:
    with pytest.raises(ValueError, match="max_steps must be a whole number, at least 1"):
        dk.Adaptive(max_steps=0)
    with pytest.raises(ValueError, match="Adaptive needs a solver that builds an inverse"):
        dk.DEQ(torch.cos, solver=dk.FixedPoint(), gradient=dk.Adaptive())
