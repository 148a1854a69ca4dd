"""Broyden's line search, dropped factors, estimated scale and range, against dense algebra."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops.termination import Counter, Norm
from python_tests.broyden_oracle import BroydenOracle
from python_tests.problems import (
    Affine,
    DenseBroyden,
    Tanh,
    symmetric_matrix,
    table_of_problems,
)

SEARCH: dict[str, Any] = {"line_search": "derivative_free"}
DROP: dict[str, Any] = {"when_full": "drop_oldest"}
AUTO: dict[str, Any] = {"gamma": "auto"}
ALL = {**SEARCH, **DROP, **AUTO}


def cubic(z: Tensor) -> Tensor:
    """f(z) = 1 − z³: one fixed point, 0.682, and plain steps that explode away from it."""
    return 1 - z**3


def exponential(z: Tensor) -> Tensor:
    """f(z) = z − eᶻ + 2: the fixed point is log 2."""
    return z - torch.exp(z) + 2


def sample_of(f: Callable[[Tensor], Tensor], index: int) -> Callable[[Tensor], Tensor]:
    """The map of one sample of an elementwise f, or of a `Tanh`."""
    return f.sample(index) if isinstance(f, Tanh) else f


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ["tanh", "cubic", "exponential"])
@pytest.mark.parametrize(
    ("search", "drop", "gamma", "damping"),
    [
        *product((False, True), (False, True), (0.8, "auto"), (1.0,)),
        (True, True, "auto", 0.7),
        (True, False, 0.8, 0.7),
        (False, True, 0.8, 0.7),
    ],
)
def test_trajectory_equals_dense_algebra(
    backend: str, name: str, search: bool, drop: bool, gamma: float | str, damping: float
) -> None:
    dim, evaluations, length = 7, 9, 3
    f = {"tanh": Tanh.random(2, dim, 1.6), "cubic": cubic, "exponential": exponential}[name]
    z0 = 1.0 + torch.randn(2, dim, dtype=torch.float64)
    options = {**(SEARCH if search else {}), **(DROP if drop else {}), "gamma": gamma}
    solver = dk.Broyden(
        max_steps=evaluations,
        rtol=0.0,
        divergence_factor=1e12,
        history_length=length,
        damping=damping,
        **options,
    )
    iterates: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        iterates.append(z.clone())
        return f(z)

    with dk.use_backend(backend):
        solution = solver(recorded, z0)
        assert isinstance(solution.inverse_jacobian, dk.ProductFormInverse)
        x = torch.randn(2, dim, dtype=torch.float64)
        products = solution.inverse_jacobian.matvec(x), solution.inverse_jacobian.rmatvec(x)
    for sample in range(2):
        oracle = BroydenOracle.run(
            sample_of(f, sample),
            z0[sample],
            evaluations,
            history_length=length,
            damping=damping,
            gamma=gamma,
            search=search,
            drop=drop,
        )
        close = {"rtol": 1e-6, "atol": 1e-8}
        torch.testing.assert_close(solution.trace[sample], oracle.trace, **close)
        for mine, expected in zip(iterates, oracle.iterates, strict=True):
            torch.testing.assert_close(mine[sample], expected, **close)
        assert solution.inverse_jacobian.rank[sample] == oracle.rank
        found = solution.tables.norms[sample, Norm.GAMMA].item()
        assert found == pytest.approx(oracle.gamma, rel=1e-9)
        size = float(torch.linalg.matrix_norm(oracle.inverse, 2)) * 1e-6
        for mine, dense in zip(products, (oracle.inverse, oracle.inverse.T), strict=True):
            torch.testing.assert_close(mine[sample], dense @ x[sample], rtol=1e-6, atol=size)
        if name == "cubic":
            assert (oracle.shortened > 0) == search


def test_the_oracle_is_good_broyden() -> None:
    """Without options, the textbook's update of a dense inverse."""
    f, z0 = Tanh.random(1, 6, 1.4), torch.randn(6, dtype=torch.float64)
    plain = DenseBroyden.run(f.sample(0), z0, 5, damping=0.7, gamma=0.8)
    oracle = BroydenOracle.run(f.sample(0), z0, 6, history_length=9, damping=0.7, gamma=0.8)
    torch.testing.assert_close(oracle.iterates[5], plain.iterates[5])
    torch.testing.assert_close(oracle.inverse, plain.inverse)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_line_search_solves_what_plain_steps_cannot(backend: str, dtype: torch.dtype) -> None:
    z0 = (3 * torch.randn(4, 12)).to(dtype)
    options: dict[str, Any] = {"max_steps": 100, "rtol": 1e-5, "stall_steps": None}
    with dk.use_backend(backend):
        plain = dk.Broyden(**options)(cubic, z0)
        searched = dk.Broyden(**options, **SEARCH)(cubic, z0)
    assert (plain.status == dk.Status.DIVERGED).all()
    assert searched.converged.all()
    torch.testing.assert_close(searched.z, torch.full_like(z0, 0.6823278), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["F", "F2", "F3", "F4", "F5", "F6"])
@pytest.mark.parametrize("options", [SEARCH, AUTO], ids=["search", "auto"])
def test_the_nonlinear_suite_of_scipy(options: dict[str, Any], name: str) -> None:
    case = table_of_problems()[name]
    # The solution of F is 0, which nothing is relative to.
    solver = dk.Broyden(max_steps=100, rtol=1e-8, atol=1e-12, stall_steps=None, **options)
    solution = solver(case.f, case.z0)
    assert solution.converged.all()
    assert isinstance(solution.z, Tensor)
    residual = (case.f(solution.z) - solution.z).norm(dim=1)
    torch.testing.assert_close(residual, solution.residual, rtol=1e-3, atol=1e-14)


def test_trials_are_evaluations() -> None:
    """They are counted and traced, and the last one may be a trial that nothing can shorten."""
    z0 = torch.full((1, 4), 30.0, dtype=torch.float64)
    z0 += torch.linspace(0, 1, 4, dtype=torch.float64)
    for max_steps in range(2, 6):
        solution = dk.Broyden(max_steps=max_steps, rtol=1e-9, **SEARCH)(cubic, z0)
        assert solution.steps.item() == max_steps
        assert solution.status == dk.Status.MAX_STEPS
        assert solution.trace.isfinite().all()
        shortened = solution.tables.counters[0, Counter.BACKTRACKS].item()
        # z0 + p, z0 + a p twice shorter, and then the point is taken as it is.
        assert shortened == {2: 0, 3: 1, 4: 2, 5: 0}[max_steps]
        # The first trial is rejected: no secant pair. The others have one, at their step lengths.
        if max_steps < 5:
            assert solution.inverse_jacobian.rank.item() == (max_steps > 2)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_the_growth_that_is_accepted(backend: str, damping: float) -> None:
    """r = s z grows by 1 + a s; after one evaluation 5/4 − 1e-4 a² is accepted."""
    most = (0.25 - 1e-4 * damping**2) / damping
    slope = torch.tensor([[0.9999 * most], [1.0001 * most]], dtype=torch.float64)
    solver = dk.Broyden(max_steps=3, rtol=0.0, damping=damping, **SEARCH)
    with dk.use_backend(backend):
        solution = solver(lambda z: z + slope * z, torch.ones(2, 3, dtype=torch.float64))
    assert solution.tables.counters[:, Counter.BACKTRACKS].tolist() == [0, 1]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_residual_that_is_not_finite_is_shortened_first(backend: str) -> None:
    """f is NaN beyond 2, where the first step of sample 0 leads; the rejection stays unused."""
    start = torch.tensor([[0.5], [0.1]], dtype=torch.float64)
    z0 = start.expand(2, 5) + 0.01 * torch.arange(5, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        value = z + 5.0 * (0.7 - z)
        return torch.where(z.abs().amax(1, keepdim=True) > 1.2, torch.nan, value)

    with dk.use_backend(backend):
        plain = dk.Broyden(max_steps=30, rtol=1e-9)(f, z0)
        searched = dk.Broyden(max_steps=30, rtol=1e-9, **SEARCH)(f, z0)
    assert (plain.status == dk.Status.DIVERGED).all()
    assert searched.trace[:, 1].isnan().all()
    assert searched.converged.all()
    assert (searched.tables.counters[:, Counter.REJECTIONS] == 0).all()
    torch.testing.assert_close(searched.z, torch.full_like(z0, 0.7), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_options_without_an_occasion_change_no_bit(backend: str) -> None:
    """A history that never fills drops nothing; a solve that shrinks is not shortened."""
    problem = Tanh.random(3, 25, 0.5)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    with dk.use_backend(backend):
        plain = dk.Broyden(max_steps=20, rtol=1e-8)(problem, z0)
        optional = dk.Broyden(max_steps=20, rtol=1e-8, **SEARCH, **DROP)(problem, z0)
        x = torch.randn(3, 25, dtype=torch.float64)
        assert torch.equal(plain.z, optional.z)
        assert torch.equal(plain.trace.nan_to_num(-1.0), optional.trace.nan_to_num(-1.0))
        mine, other = plain.inverse_jacobian, optional.inverse_jacobian
        assert mine is not None
        assert other is not None
        assert torch.equal(mine.rmatvec(x), other.rmatvec(x))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("scale", [100.0, 0.01])
def test_an_estimated_scale_spares_steps_on_badly_scaled_maps(backend: str, scale: float) -> None:
    """f(z) = z − a (A z − b) with A near I: γ becomes about 1 / a."""
    matrix = symmetric_matrix(*torch.linspace(0.6, 1.4, 20).tolist())
    bias = torch.randn(3, 20, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return z - scale * (z @ matrix - bias)

    z0 = torch.zeros(3, 20, dtype=torch.float64)
    options: dict[str, Any] = {"max_steps": 60, "rtol": 0.0, "stall_steps": None}
    options |= {"atol": scale * 1e-6, "history_length": 4}
    with dk.use_backend(backend):
        plain = dk.Broyden(**options)(f, z0)
        auto = dk.Broyden(**options, **AUTO)(f, z0)
    gamma = auto.tables.norms[:, Norm.GAMMA]
    assert ((gamma * scale > 0.7) & (gamma * scale < 1.7)).all()
    assert auto.converged.all()
    assert (auto.steps + 5 < plain.steps).all()
    solution = torch.linalg.solve(matrix, bias.T).T
    torch.testing.assert_close(auto.z, solution, rtol=1e-4, atol=1e-4)


def test_an_estimate_may_be_clamped_or_useless() -> None:
    """Each sample by itself, from r₀ and the r₁ that follows it."""
    slopes = {"clamped low": -1e5, "clamped high": -1e-3 / 2, "positive": 0.5, "fine": -4.0}
    slope = torch.tensor(list(slopes.values()), dtype=torch.float64)[:, None]
    z0 = torch.ones(4, 6, dtype=torch.float64)
    solver = dk.Broyden(max_steps=3, rtol=0.0, divergence_factor=1e9, **AUTO)
    solution = solver(lambda z: z + slope * z, z0)
    gamma = solution.tables.norms[:, Norm.GAMMA]
    torch.testing.assert_close(gamma[[0, 2, 3]], torch.tensor([1e-3, 1.0, 0.25]).double())
    # ‖y‖ is 5e-4 ‖r‖ there: within rounding of nothing, says the guard of 1e-6.
    assert gamma[1] == 1.0
    assert (solution.tables.counters[:, Counter.ESTIMATES] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("history_dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", [{}, {"history_length": 5, **ALL}], ids=["plain", "all"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_size_of_the_numbers_changes_no_bit(
    backend: str,
    options: dict[str, Any],
    history_dtype: torch.dtype | None,
    dtype: torch.dtype,
) -> None:
    """s f(z / s) is solved in the same steps as f, bit for bit, far beyond where squares are."""
    problem = Tanh.random(3, 50, 1.4, dtype)
    z0 = torch.randn(3, 50).to(dtype)
    x = torch.randn(3, 50).to(dtype)
    solver = dk.Broyden(max_steps=25, rtol=1e-2, history_dtype=history_dtype, **options)
    results = []
    for size in (1.0, 2.0**100, 2.0**-100, 2.0**64, 2.0**-64):
        with dk.use_backend(backend):
            solution = solver(lambda z, size=size: size * problem(z / size), size * z0)
            assert isinstance(solution.z, Tensor)
            assert solution.inverse_jacobian is not None
            products = [
                solution.inverse_jacobian.matvec(x),
                solution.inverse_jacobian.rmatvec(x),
                2.0**90 * solution.inverse_jacobian.rmatvec(2.0**-90 * x),
            ]
        assert (solution.tables.norms[:, Norm.SCALE] != 1.0).all() == (size != 1.0)
        trace = (solution.trace / size).nan_to_num(-1.0)
        results.append([solution.z / size, trace, solution.steps, *products])
    assert results[0][2].min() > 4
    for other in results[1:]:
        for now, before in zip(other, results[0], strict=True):
            assert torch.equal(now, before)
    assert torch.equal(results[0][-1], results[0][-2])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_float16_directions_keep_their_digits(backend: str) -> None:
    """Residuals of 1e-4 are subnormal in float16, and their products are no numbers at all."""
    problem = Tanh.random(2, 40, 0.8)

    def f(z: Tensor) -> Tensor:
        return (1e-4 * problem(1e4 * z.double())).half()

    with dk.use_backend(backend):
        solution = dk.Broyden(max_steps=8, rtol=1e-2)(f, torch.zeros(2, 40).half())
    assert (solution.tables.norms[:, Norm.SCALE] >= 2.0**12).all()
    assert solution.converged.all()


@pytest.mark.parametrize("options", [SEARCH, DROP, AUTO, ALL])
def test_the_inverse_may_be_left_out(options: dict[str, Any]) -> None:
    z0 = 2 * torch.randn(3, 12, dtype=torch.float64)
    for max_steps in (6, 40):
        solver = dk.Broyden(max_steps=max_steps, rtol=1e-6, history_length=3, **options)
        kept, left_out = (solver(cubic, z0, keep_inverse=keep) for keep in (True, False))
        assert torch.equal(kept.status, left_out.status)
        assert torch.equal(kept.trace.nan_to_num(-1.0), left_out.trace.nan_to_num(-1.0))
        assert torch.equal(kept.z, left_out.z)


def test_an_estimated_scale_reaches_the_products_and_the_gradient() -> None:
    problem = Affine.random(3, 8, 0.6)
    z0 = torch.zeros(3, 8, dtype=torch.float64)
    solver = dk.Broyden(max_steps=30, rtol=1e-9, **AUTO)
    inverse = solver(problem, z0).inverse_jacobian
    assert isinstance(inverse, dk.ProductFormInverse)
    assert isinstance(inverse.gamma, Tensor)
    assert inverse.gamma.unique().numel() == 3
    basis = torch.eye(8, dtype=torch.float64).expand(3, 8, 8)
    # Columns H e_i, and Hᵀ e_i: the same matrix.
    torch.testing.assert_close(inverse.matvec(basis), inverse.rmatvec(basis).mT)
    tensors, rebuild = inverse.unbind()
    assert torch.equal(rebuild(*tensors).matvec(z0 + 1.0), inverse.matvec(z0 + 1.0))

    bias = problem.bias.clone().requires_grad_()
    layer = dk.DEQ(
        lambda z, x: z @ problem.weight.T + x, solver=solver, gradient=dk.Shine(fallback=None)
    )
    cotangent = torch.randn(3, 8, dtype=torch.float64)
    (layer(z0, bias) * cotangent).sum().backward()
    torch.testing.assert_close(bias.grad, -inverse.rmatvec(cotangent))


@pytest.mark.parametrize("size", [1.0, 2.0**-23, 2.0**23])
def test_a_cotangent_of_any_size_has_its_gradient(size: float) -> None:
    """After a float32 solve of small, ordinary or large numbers: the same bits."""
    weight = Tanh.random(3, 60, 0.95, torch.float32).weight
    bias = torch.randn(3, 60)
    layer = dk.DEQ(
        lambda z, x: size * torch.tanh(z / size @ weight.T + x),
        solver=dk.Broyden(max_steps=30, rtol=1e-6),
        gradient=dk.Shine(),
    )
    cotangent = torch.randn(3, 60)
    grads = []
    for scale in (1.0, 2.0**-85, 2.0**95):
        x = bias.clone().requires_grad_()
        z = layer(torch.zeros(3, 60), x)
        (grad,) = torch.autograd.grad(z, x, scale * cotangent)
        grads.append(grad / scale)
    assert grads[0].abs().min() > 0
    assert torch.equal(grads[1], grads[0])
    assert torch.equal(grads[2], grads[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gamma": "automatic"},
            "gamma must be a number, finite and above 0, or 'auto'; got 'automatic'",
        ),
        ({"gamma": 0.0}, "gamma must be finite and above 0, or 'auto'; got 0.0"),
        (
            {"line_search": "armijo"},
            "line_search must be one of 'derivative_free', None; got 'armijo'",
        ),
        ({"when_full": "drop"}, "when_full must be one of 'restart', 'drop_oldest'; got 'drop'"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dk.Broyden(**options)
