"""Anderson acceleration: what theory says of it, and what it does when things go wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.problems import Affine, Map, Tanh

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BACKENDS = ("native", "reference")


def gmres_iterates(f: Map, z0: Tensor, steps: int) -> list[Tensor]:
    """z_k of one sample with the smallest ‖f(z) − z‖ over z0 + span(r, A r, …, A^(k−1) r), dense.

    f is affine, A = W − I its residual's matrix.
    """
    eye = torch.eye(len(z0), dtype=torch.float64)
    zero = f(torch.zeros_like(z0))
    matrix = torch.stack([f(column) - zero - column for column in eye], dim=1)
    residual = f(z0) - z0
    krylov = residual[:, None] / residual.norm()
    iterates = [z0]
    for _ in range(steps):
        weights = torch.linalg.lstsq(matrix @ krylov, -residual[:, None], driver="gelsd").solution
        iterates.append(z0 + (krylov @ weights)[:, 0])
        grown = torch.cat((krylov, matrix @ krylov[:, -1:]), dim=1)
        krylov = torch.linalg.qr(grown).Q
    return iterates


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [0.9, 1.5])
def test_full_window_is_gmres_on_affine_maps(backend: str, norm: float) -> None:
    """Undamped, with a window of all: z_{k+1} = f(GMRES iterate k) (Walker and Ni, theorem 2.2)."""
    problem = Affine.random(2, 12, norm)
    z0 = torch.randn(2, 12, dtype=torch.float64)
    iterates: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        iterates.append(z.clone())
        return problem(z)

    solver = dk.Anderson(max_steps=9, history_length=9, regularization=0.0, rtol=0.0)
    with dk.use_backend(backend):
        solver(recorded, z0)
    for sample in range(2):

        def f(z: Tensor, sample: int = sample) -> Tensor:
            return problem.weight @ z + problem.bias[sample]

        for k, expected in enumerate(gmres_iterates(f, z0[sample], 7)):
            torch.testing.assert_close(iterates[k + 1][sample], f(expected), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [0.5, 0.9, 3.0])
@pytest.mark.parametrize("dim", [1, 2, 10])
def test_affine_maps_are_solved_in_dim_steps(backend: str, norm: float, dim: int) -> None:
    """GMRES ends in d steps; one evaluation is f of its last iterate and one sees the solution."""
    problem = Affine.random(3, dim, norm)
    z0 = torch.zeros(3, dim, dtype=torch.float64)
    solver = dk.Anderson(max_steps=dim + 2, history_length=dim + 1, regularization=0.0, rtol=1e-8)
    with dk.use_backend(backend):
        solution = solver(problem, z0)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_a_window_of_one_is_the_damped_iteration(backend: str, damping: float) -> None:
    problem = Tanh.random(3, 30, 0.9)
    z0 = torch.randn(3, 30, dtype=torch.float64)
    options = {"max_steps": 30, "rtol": 1e-3, "damping": damping}
    with dk.use_backend(backend):
        one = dk.Anderson(history_length=1, **options)(problem, z0)
        plain = dk.FixedPoint(**options)(problem, z0)
    assert torch.equal(one.z, plain.z)
    assert torch.equal(one.trace.nan_to_num(-1.0), plain.trace.nan_to_num(-1.0))
    assert torch.equal(one.status, plain.status)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("history_length", [2, 6])
def test_slow_contraction_is_accelerated(backend: str, history_length: int) -> None:
    """Slopes up to 0.98: the plain iteration gains 2 % a step."""
    gain = torch.linspace(-0.5, 0.97, 40, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return gain * z + 0.01 * torch.sin(z) + 1.0

    z0 = torch.zeros(2, 40, dtype=torch.float64)
    options = {"max_steps": 500, "rtol": 1e-8, "stall_steps": None}
    with dk.use_backend(backend):
        solution = dk.Anderson(history_length=history_length, **options)(f, z0)
        plain = dk.FixedPoint(**options)(f, z0)
    assert solution.converged.all()
    assert plain.converged.all()
    assert (2.5 * solution.steps < plain.steps).all()


@pytest.mark.parametrize("scale", [2.0**-400, 2.0**-20, 2.0**300])
def test_the_ridge_has_no_scale_of_its_own(scale: float) -> None:
    """The same problem in other units: the same bits in those units."""
    problem = Affine.random(3, 25, 0.95)
    z0 = torch.randn(3, 25, dtype=torch.float64)
    scaled = Affine(problem.weight, problem.bias * scale)
    solver = dk.Anderson(max_steps=25, rtol=1e-9, regularization=1e-3)
    plain, other = solver(problem, z0), solver(scaled, z0 * scale)
    assert torch.equal(other.z, plain.z * scale)
    assert torch.equal(other.steps, plain.steps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_states_of_any_size_take_the_same_steps(
    backend: str, dtype: torch.dtype, scale: float
) -> None:
    """s f(z / s) from s z0, where squares of residuals leave the range of float32."""
    gain = torch.linspace(-0.9, 0.95, 60).to(dtype)

    def f(z: Tensor) -> Tensor:
        return (gain * z + 1.0) / (1.0 + 0.1 * z * z)

    z0 = torch.randn(3, 60).to(dtype)
    solver = dk.Anderson(max_steps=30, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    damped = dk.FixedPoint(max_steps=30, rtol=solver.rtol)(f, z0)
    with dk.use_backend(backend):
        plain = solver(f, z0)
        other = solver(lambda z: scale * f(z / scale), scale * z0)
    assert plain.converged.all()
    assert (plain.steps < damped.steps).all()
    assert torch.equal(other.z / scale, plain.z)
    assert torch.equal(other.steps, plain.steps)


def test_the_ridge_does_not_stop_the_convergence() -> None:
    """Even a coarse one: it is relative to the residual, which vanishes."""
    problem = Tanh.random(3, 40, 0.9)
    z0 = torch.zeros(3, 40, dtype=torch.float64)
    coarse, fine = (
        dk.Anderson(max_steps=60, rtol=1e-12, regularization=ridge)(problem, z0)
        for ridge in (1e-2, 0.0)
    )
    assert coarse.converged.all()
    assert (coarse.steps <= fine.steps + 5).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history_dtype", [None, torch.bfloat16, torch.float32])
def test_every_dtype(backend: str, dtype: torch.dtype, history_dtype: torch.dtype | None) -> None:
    problem = Tanh.random(3, 50, 0.8, dtype)
    rtol = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 3e-2)
    solver = dk.Anderson(max_steps=40, rtol=rtol, history_dtype=history_dtype)
    with dk.use_backend(backend):
        solution = solver(problem, torch.zeros(3, 50, dtype=dtype))
    assert solution.converged.all()
    assert solution.z.dtype == dtype
    assert solution.inverse_jacobian is None


def test_a_bfloat16_history_costs_no_accuracy() -> None:
    """Changes shrink with the residual, and so does what their rounding does to the iterate."""
    problem = Tanh.random(3, 50, 0.9)
    z0 = torch.zeros(3, 50, dtype=torch.float64)
    steps = [
        dk.Anderson(max_steps=60, rtol=1e-12, history_dtype=dtype)(problem, z0).steps.max()
        for dtype in (None, torch.bfloat16)
    ]
    assert steps[1] < 60
    assert steps[1] <= steps[0] + 10


def test_tuples_of_tensors() -> None:
    problem = Tanh.random(3, 14, 0.8)

    def f(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        out = problem(torch.cat((state[0].flatten(1), state[1]), dim=1))
        return out[:, :8].reshape(3, 2, 4), out[:, 8:]

    z0 = torch.randn(3, 14, dtype=torch.float64)
    solver = dk.Anderson(max_steps=12, rtol=1e-6)
    pieces = solver(f, (z0[:, :8].reshape(3, 2, 4), z0[:, 8:]))
    whole = solver(problem, z0)
    assert isinstance(pieces.z, tuple)
    assert torch.equal(torch.cat((pieces.z[0].flatten(1), pieces.z[1]), dim=1), whole.z)
    assert torch.equal(pieces.steps, whole.steps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_stop_by_themselves(backend: str) -> None:
    factor = torch.tensor([[0.0], [0.5], [0.999], [2.0]], dtype=torch.float64)
    gain = factor * torch.linspace(0.5, 1.0, 30, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return gain * torch.sin(z) + 1.0

    with dk.use_backend(backend):
        solution = dk.Anderson(max_steps=6, rtol=1e-6)(f, torch.zeros(4, 30, dtype=torch.float64))
    assert solution.steps[0] == 2
    assert solution.steps[0] < solution.steps[1] <= solution.steps[2] == 6
    assert solution.status[0] == dk.Status.CONVERGED
    assert solution.status[3] == dk.Status.MAX_STEPS
    for sample in range(4):
        used = int(solution.steps[sample])
        assert solution.trace[sample, used:].isnan().all()
        assert solution.residual[sample] == solution.trace[sample, :used].min()


@pytest.mark.parametrize("backend", BACKENDS)
def test_stalled(backend: str) -> None:
    """A map without a fixed point: singular at every step, and the residual never falls."""
    with dk.use_backend(backend):
        solution = dk.Anderson(max_steps=50, rtol=0.0, stall_steps=7)(
            lambda z: z + 1.0, torch.zeros(1, 4, dtype=torch.float64)
        )
    assert solution.status == dk.Status.STALLED
    assert solution.steps == 8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e12])
def test_a_rejected_step_goes_back_to_the_best_iterate_once(backend: str, bad: float) -> None:
    problem = Tanh.random(3, 25, 0.9)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    solver = dk.Anderson(max_steps=40, rtol=1e-9)

    def failing(at: set[int]) -> Map:
        evaluation = -1

        def f(z: Tensor) -> Tensor:
            nonlocal evaluation
            evaluation += 1
            out = problem(z)
            if evaluation in at:
                out[1] = bad
            return out

        return f

    with dk.use_backend(backend):
        clean = solver(problem, z0)
        once = solver(failing({4}), z0)
        twice = solver(failing({4, 7}), z0)
        at_once = solver(failing({0}), z0)
    assert once.converged.all()
    # Evaluation 5 is at the best iterate so far, whose residual is known already.
    torch.testing.assert_close(once.trace[1, 5], once.trace[1, :4].min())
    assert twice.status[1] == dk.Status.DIVERGED
    assert twice.steps[1] == 8
    assert twice.residual[1] == twice.trace[1, [0, 1, 2, 3, 5, 6]].min()
    torch.testing.assert_close(
        (problem(twice.z) - twice.z)[1].norm(), twice.residual[1], rtol=1e-9, atol=0.0
    )
    if bad != 1e12:
        assert at_once.status[1] == dk.Status.DIVERGED
        assert at_once.steps[1] == 1
        assert torch.equal(at_once.z[1], z0[1])
    if backend == "native":
        for solution in (once, twice, at_once):
            for sample in (0, 2):
                assert torch.equal(solution.z[sample], clean.z[sample])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 2, 2)])
def test_empty_states(shape: tuple[int, ...]) -> None:
    solution = dk.Anderson(max_steps=5)(lambda z: z + 1.0, torch.zeros(shape))
    assert solution.z.shape == shape
    assert solution.steps.shape == (shape[0],)


@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_few_steps(max_steps: int) -> None:
    """A window holds no more than the steps can use."""
    solution = dk.Anderson(max_steps=max_steps, rtol=0.0)(
        lambda z: 0.5 * torch.cos(z), torch.zeros(2, 3)
    )
    assert solution.steps.tolist() == [max_steps] * 2
    assert (solution.status == dk.Status.MAX_STEPS).all()
    assert solution.trace.isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"history_length": 0}, ValueError, "history_length must be a whole number, at least 1"),
        ({"regularization": -1e-9}, ValueError, "regularization must be finite and at least 0"),
        ({"regularization": torch.inf}, ValueError, "regularization must be finite"),
        ({"damping": 0.0}, ValueError, "damping must be above 0"),
        ({"damping": 2.5}, ValueError, "damping must be above 0 and at most 2"),
        ({"max_steps": 0}, ValueError, "max_steps must be a whole number, at least 1"),
        ({"lam": 1e-4}, TypeError, "lam"),
    ],
)
def test_options_out_of_range(
    options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dk.Anderson(**options)


def test_history_dtype_out_of_range() -> None:
    with pytest.raises(TypeError, match="history_dtype must be one of"):
        dk.Anderson(history_dtype=torch.float64)(lambda z: z, torch.zeros(1, 2))


def test_solves_the_adjoint_equation_of_a_layer() -> None:
    """Forward and backward by Anderson against the implicit function theorem in closed form."""
    problem = Affine.random(3, 12, 0.8)
    weight = torch.nn.Parameter(problem.weight.clone())
    x = torch.randn(3, 12, dtype=torch.float64)
    solver = dk.Anderson(max_steps=60, rtol=1e-12)
    layer = dk.DEQ(
        lambda z, x: z @ weight.T + x, solver=solver, gradient=dk.Implicit(solver=solver)
    )
    z = layer(torch.zeros_like(x), x)
    target = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((z * target).sum(), weight)
    inverse = torch.linalg.inv(torch.eye(12, dtype=torch.float64) - problem.weight)
    exact_z, adjoint = x @ inverse.T, target @ inverse
    torch.testing.assert_close(z, exact_z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, adjoint.T @ exact_z, rtol=1e-8, atol=1e-8)
