"""`deq_kernels.root` beside `scipy.optimize.root`, on SciPy's own problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import Status
from python_tests import problems

optimize = pytest.importorskip("scipy.optimize")

# The residuals of SciPy's suite, with its starts and the sign that a first step needs.
SCIPY: dict[str, tuple[Callable[[Tensor], Tensor], list[float], float]] = {
    "F": (problems.cubic_spring, [1.0] * 5, 1.0),
    "F2": (problems.identity, [1.0] * 6, -1.0),
    "F3": (problems.second_difference, [1.0, 2.0, 3.0], 1.0),
    "F4": (problems.powell, [-1.0, -2.0], 1.0),
    "F5": (problems.pipe_network, [2.0, 0.0, 2.0, 0.0], -1.0),
    "F6": (problems.preconditioned_pair, [-0.5, 1.4], 1.0),
}


def as_arrays(residual: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """The residual of one sample, on arrays."""
    return lambda x: residual(torch.from_numpy(x)[None])[0].numpy()


@pytest.mark.parametrize("name", SCIPY)
def test_scipys_problems(name: str) -> None:
    """Both find a root; ours is within SciPy's tolerance in the norm that it takes."""
    residual, start, sign = SCIPY[name]
    fun = as_arrays(residual)
    result = dk.root(fun, start, tol=1e-8, options={"alpha": sign})
    assert result.success
    assert result.status == Status.CONVERGED
    assert isinstance(result.x, np.ndarray)
    np.testing.assert_array_equal(result.fun, fun(result.x))
    assert np.linalg.norm(result.fun) < 1e-8
    peer = optimize.root(fun, start, method="broyden1", options={"maxiter": 400, "fatol": 1e-9})
    assert set(peer) - {"fun"} <= set(result)
    if peer.success and name in ("F", "F2", "F3"):  # the others have several roots
        np.testing.assert_allclose(result.x, peer.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["F", "F3", "F6"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_steps_are_scipys(name: str, seed: int) -> None:
    """With α = 1, no line search and all factors kept, both take the same steps."""
    residual, start, sign = SCIPY[name]
    fun = as_arrays(residual)
    start = (np.array(start) + 0.1 * np.random.default_rng(seed).normal(size=len(start))).tolist()
    theirs: list[Any] = []
    mine: list[Any] = []
    steps = 4
    optimize.root(
        fun,
        start,
        method="broyden1",
        callback=lambda x, f: theirs.append(x.copy()),
        options={"nit": steps, "line_search": None, "jac_options": {"alpha": sign}},
    )
    options = {"alpha": sign, "maxiter": steps + 1, "fatol": 1e-300}
    dk.root(fun, start, callback=lambda x, f: mine.append(x.copy()), options=options)
    np.testing.assert_allclose(mine[0], start)
    assert len(theirs) >= 3
    for ours, peer in zip(mine[1:], theirs, strict=False):
        np.testing.assert_allclose(ours, peer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [5, 20])
def test_linear_systems_end_in_twice_their_size(dim: int) -> None:
    """As SciPy's TestLinear has it of Broyden's method (Gay 1979)."""
    matrix = np.random.default_rng(0).normal(size=(dim, dim)) + dim * np.eye(dim)
    right = np.random.default_rng(1).normal(size=dim)
    result = dk.root(
        lambda x: matrix @ x - right,
        np.zeros(dim),
        options={"alpha": -1.0 / dim, "maxiter": 2 * dim + 2, "fatol": 1e-8},
    )
    assert result.success
    np.testing.assert_allclose(matrix @ result.x, right, atol=1e-6)


def test_secant_conditions() -> None:
    """As SciPy's TestSecant: the last step is reproduced by the inverse, earlier ones need not."""
    seen: list[tuple[Any, Any]] = []
    residual, start, sign = SCIPY["F"]
    result = dk.root(
        as_arrays(residual),
        start,
        callback=lambda x, f: seen.append((x.copy(), f.copy())),
        options={"alpha": sign, "maxiter": 6},
    )
    inverse = result.solution.inverse_jacobian
    assert inverse is not None
    (x0, f0), (x1, f1) = seen[-2:]
    change = inverse.matvec(torch.from_numpy(f1 - f0)[None])[0].numpy()
    np.testing.assert_allclose(change, x1 - x0, rtol=1e-7, atol=1e-12)


def test_products_belong_to_one_matrix() -> None:
    """As SciPy's TestJacobianDotSolve: products and transposed products of every inverse agree."""
    residual, start, sign = SCIPY["F"]
    for method in ("broyden1", "adjoint_broyden", "lbfgs"):
        result = dk.root(
            residual,
            torch.tensor([start]).double(),
            method=method,
            batched=True,
            options={"alpha": sign, "maxiter": 7},
        )
        inverse = result.solution.inverse_jacobian
        eye = torch.eye(5, dtype=torch.float64)[None]
        forward, backward = inverse.matvec(eye)[0].mT, inverse.rmatvec(eye)[0].mT
        torch.testing.assert_close(forward, backward.mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["broyden1", "anderson", "linearmixing", "gmres"])
@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
def test_kinds_and_methods(method: str, kind: str) -> None:
    matrix = torch.tensor([[2.0, 0.5], [-0.3, 1.5]], dtype=torch.float64)
    right = torch.tensor([1.0, -1.0], dtype=torch.float64)
    options = {"alpha": -0.5, "fatol": 1e-9}
    if kind == "tensor":
        result = dk.root(lambda x: matrix @ x - right, right * 0, method=method, options=options)
        assert isinstance(result.x, Tensor)
        x = result.x.numpy()
    else:
        array = matrix.numpy()
        start = [0, 0] if kind == "list" else np.zeros(2)
        result = dk.root(
            lambda x, b: array @ x - b, start, args=right.numpy(), method=method, options=options
        )
        x = result.x
    assert result.success
    assert result.nit < result.nfev
    np.testing.assert_allclose(x, np.linalg.solve(matrix.numpy(), right.numpy()), atol=1e-8)


def test_scalars_and_callback() -> None:
    seen: list[tuple[Any, Any]] = []
    result = dk.root(
        lambda x: np.cos(x) - x, 0.5, tol=1e-12, callback=lambda x, f: seen.append((x, f))
    )
    assert result.x.shape == ()
    assert abs(float(result.x) - 0.7390851332151607) < 1e-12
    assert len(seen) == result.nfev
    assert all(f == np.cos(x) - x for x, f in seen)
    tensor = dk.root(lambda x: torch.cos(x) - x, torch.tensor(0.5), method="adjoint_broyden")
    assert tensor.x.shape == ()
    assert tensor.success


def test_batched_equations_are_independent() -> None:
    """A batch gives each equation the answer, status and steps that it has alone."""
    target = torch.tensor([[0.5], [2.0], [9.0], [-1.0]], dtype=torch.float64)

    def fun(x: Tensor, a: Tensor) -> Tensor:
        return a - x * x

    z0 = torch.ones(4, 1, dtype=torch.float64)
    together = dk.root(fun, z0, target, batched=True, tol=1e-10, options={"maxiter": 30})
    assert together.success.tolist() == [True, True, True, False]
    assert "3 of 4" in together.message
    for i in range(4):
        alone = dk.root(fun, z0[i], target[i], tol=1e-10, options={"maxiter": 30})
        assert torch.equal(alone.x, together.x[i])
        assert (alone.success, alone.status, alone.nit) == (
            *(bool(together.success[i]), int(together.status[i]), int(together.nit[i])),
        )
    roots = together.x[:3].square()
    torch.testing.assert_close(roots, target[:3], rtol=1e-9, atol=1e-9)


def test_a_failure_is_no_error() -> None:
    result = dk.root(lambda x: x * x + 1.0, np.array([0.5]), options={"maxiter": 20})
    assert not result.success
    assert result.status in (Status.MAX_STEPS, Status.DIVERGED)
    assert result.message
    nothing = dk.root(lambda x: x * np.nan, np.array([0.5]))
    assert nothing.status == Status.DIVERGED
    assert nothing.x.tolist() == [0.5]


def trigonometric(x: Any) -> Any:
    n = len(x)
    return n - np.cos(x).sum() + np.arange(1, n + 1) * (1 - np.cos(x)) - np.sin(x)


def boundary_value(x: Any) -> Any:
    n, h = len(x), 1.0 / (len(x) + 1)
    padded = np.concatenate([[0.0], x, [0.0]])
    t = h * np.arange(1, n + 1)
    return 2 * x - padded[:-2] - padded[2:] + h**2 * (x + t + 1) ** 3 / 2


def integral_equation(x: Any) -> Any:
    n, h = len(x), 1.0 / (len(x) + 1)
    t = h * np.arange(1, n + 1)
    cubes = (x + t + 1) ** 3
    kernel = np.where(t[:, None] >= t, (1 - t[:, None]) * t, t[:, None] * (1 - t))
    return x + h * (kernel @ cubes) / 2


def tridiagonal(x: Any) -> Any:
    padded = np.concatenate([[0.0], x, [0.0]])
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


GRID = np.arange(1, 11) / 11
# Numbers 26, 28, 29 and 30 of Moré, Garbow and Hillstrom 1981, with ten unknowns and their starts,
# and α as roughly −1 / the slope; whether Broyden's method gets there from it.
MORE: dict[str, tuple[Callable[[Any], Any], Any, float, bool]] = {
    "trigonometric": (trigonometric, np.full(10, 0.1), -1.0, False),
    "boundary value": (boundary_value, GRID * (GRID - 1), -0.5, True),
    "integral equation": (integral_equation, GRID * (GRID - 1), -1.0, True),
    "tridiagonal": (tridiagonal, np.full(10, -1.0), -0.2, True),
}


@pytest.mark.parametrize("method", ["broyden1", "anderson", "linearmixing", "gmres", "lbfgs"])
@pytest.mark.parametrize("name", MORE)
def test_success_is_a_small_fun(name: str, method: str) -> None:
    """Whatever becomes of x, and x is the best point that was evaluated."""
    fun, start, alpha, reached = MORE[name]
    norms: list[float] = []
    result = dk.root(
        fun,
        start,
        method=method,
        tol=1e-7,
        callback=lambda x, f: norms.append(float(np.linalg.norm(f))),
        options={"alpha": alpha, "maxiter": 60},
    )
    assert result.success == (np.linalg.norm(result.fun) <= 1e-7)
    assert result.nfev == len(norms) <= 60
    assert np.linalg.norm(result.fun) == pytest.approx(np.nanmin(norms), rel=1e-12)
    np.testing.assert_array_equal(result.fun, fun(result.x))
    assert result.solution.residual[0] == pytest.approx(-alpha * np.nanmin(norms), rel=1e-12)
    assert bool(result.solution.converged[0]) == result.success
    if method == "broyden1":
        assert result.success == reached
        options = {"maxiter": 60, "fatol": 1e-8, "jac_options": {"alpha": alpha}}
        with np.errstate(all="ignore"):
            peer = optimize.root(fun, start, method="broyden1", options=options)
        if reached:
            assert peer.success
            np.testing.assert_allclose(result.x, peer.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "start", "root", "tol"),
    [(torch.float32, 1e6, 1000100.0, 1e-5), (torch.float64, 1e10, 1e10 + 0.005, 1e-8)],
)
def test_steps_below_the_rounding_of_x(
    dtype: torch.dtype, start: float, root: float, tol: float
) -> None:
    """α fun(x) is lost when added to x, but neither in judging fun nor in the distance from x0."""
    x0 = torch.tensor([start], dtype=dtype)
    result = dk.root(lambda x: 1e-4 * (root - x), x0, tol=tol)
    assert result.success
    assert float(result.fun.abs()) <= tol


@pytest.mark.parametrize("method", ["broyden1", "linearmixing", "anderson", "lbfgs", "gmres"])
def test_a_step_that_is_lost_is_no_success(method: str) -> None:
    """Ten million away from the start, steps of this size are rounding."""
    far = torch.tensor([1e7])

    def fun(x: Tensor) -> Tensor:
        return torch.where(x < 5e6, far - x, torch.full_like(x, 1e-3))

    result = dk.root(fun, torch.zeros(1), tol=1e-5, method=method, options={"maxiter": 30})
    assert not result.success
    assert float(result.fun.norm()) == pytest.approx(1e-3)
    assert result.status in (Status.STALLED, Status.MAX_STEPS)


def test_a_wrong_sign_is_hinted_at() -> None:
    matrix = np.diag([1.0, 2.0, 3.0])
    wrong = dk.root(
        lambda x: matrix @ x - 1.0, np.zeros(3), method="linearmixing", options={"maxiter": 5}
    )
    assert not wrong.success
    assert "alpha may have the wrong sign" in wrong.message
    right = dk.root(lambda x: matrix @ x - 1.0, np.zeros(3), options={"alpha": -0.3, "maxiter": 2})
    assert not right.success
    assert "alpha" not in right.message
    together = dk.root(
        lambda x: x * torch.tensor([[1.0], [-1.0]]) + 1.0,
        torch.zeros(2, 3),
        method="linearmixing",
        batched=True,
        options={"maxiter": 5},
    )
    assert together.message.startswith("1 of 2 samples converged. In 1 of the others")


@pytest.mark.parametrize("method", list(dk.solvers.root_finding.METHODS))
@pytest.mark.parametrize("most", [1, 2, 5])
def test_evaluations_stay_within_maxiter(method: str, most: int) -> None:
    """And an array of one dimension is one problem."""
    result = dk.root(
        lambda x: torch.cos(x).flip(0) - x,
        torch.tensor([0.1, 0.2, 0.3]).double(),
        method=method,
        options={"maxiter": most, "fatol": 1e-13},
    )
    assert result.nfev <= most
    assert result.x.shape == (3,)
    assert result.solution.status.shape == (1,)


def test_values_of_any_size() -> None:
    """Their squares vanish or overflow, and neither is a root."""
    for size in (1e-200, 1e200):
        for alpha, success in ((0.0625 / size, True), (1e-6 / size, False)):
            result = dk.root(
                lambda x, size=size: size * (1.0 - x),
                np.zeros(3),
                method="linearmixing",
                options={"fatol": 1e-2 * size, "alpha": alpha},
            )
            assert result.success == success
            assert (result.fun.max() <= 1e-2 * size / np.sqrt(3)) == success


def test_functions_of_the_iterate_know_x() -> None:
    """Distances from x0 are an inner matter."""
    start = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    points: list[Tensor] = []

    def energy(x: Tensor) -> Tensor:
        points.append(x)
        return (x - 1.0).square().sum(1)

    result = dk.root(
        lambda x: 2.0 * (1.0 - x),
        start,
        method="lbfgs",
        batched=True,
        options={"objective": energy, "alpha": 0.5},
    )
    assert result.success.all()
    torch.testing.assert_close(points[0], start)

    def outer(x: Tensor) -> Tensor:
        points.append(x)
        return torch.ones_like(x)

    points.clear()
    result = dk.root(
        lambda x: torch.tanh(0.5 * x) + 0.3 - x,
        start[0],
        method="adjoint_broyden",
        options={"outer_gradient": outer, "opa_every": 1},
    )
    assert result.success
    assert all(x.shape == (1, 2) for x in points)
    torch.testing.assert_close(points[-1], result.x[None], rtol=0.1, atol=0.1)


def test_the_result_reads_like_scipys() -> None:
    result = dk.root(np.cos, np.array([1.0, 2.0]), options={"alpha": 1.0})
    assert result["x"] is result.x
    assert "success: True" in repr(result)
    assert "nfev" in dir(result)
    with pytest.raises(AttributeError, match="got 'njev'"):
        _ = result.njev


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "hybr"}, ValueError, "method must be one of 'broyden1'"),
        ({"jac": True}, TypeError, "jac"),
        ({"options": {"ftol": 1e-3}}, TypeError, "ftol"),
        ({"options": {"max_steps": 3}}, TypeError, "'max_steps'; it is called 'maxiter'"),
        ({"options": {"alpha": 0.0}}, ValueError, "alpha"),
        ({"options": {"fatol": -1.0}}, ValueError, "fatol"),
        ({"tol": 1e-3, "options": {"fatol": 1e-4}}, ValueError, "tol and fatol"),
        ({"callback": 3}, ValueError, "callback"),
        ({"batched": 1}, ValueError, "batched"),
        ({"x0": 1.0, "batched": True}, ValueError, r"batched=True needs x0 \[B, ...\]"),
        ({"x0": "one"}, TypeError, "real numbers"),
        ({"fun": lambda x: x[:1]}, ValueError, "as many numbers"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    fun, x0 = arguments.pop("fun", np.cos), arguments.pop("x0", np.zeros(3))
    with pytest.raises(error, match=message):
        dk.root(fun, x0, **arguments)


def test_a_tensor_function_returns_tensors() -> None:
    with pytest.raises(TypeError, match="fun must return a tensor"):
        dk.root(lambda x: 0.0, torch.zeros(1))
