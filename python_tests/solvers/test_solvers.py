"""Solvers on problems with known answers, and what they do when things go wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from python_tests.problems import Affine, DenseBroyden, Tanh

SOLVERS = (dk.Broyden, dk.FixedPoint)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("norm", [0.3, 0.6])
def test_affine_solution(solver: type[dk.Solver], norm: float) -> None:
    problem = Affine.random(4, 20, norm)
    solution = solver(max_steps=100, rtol=1e-12)(problem, torch.zeros(4, 20, dtype=torch.float64))
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-10, atol=1e-10)
    residual = (problem(solution.z) - solution.z).norm(dim=1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-3, atol=1e-14)


def test_broyden_solves_an_expansive_affine_map_in_two_dim_steps() -> None:
    """Broyden's method ends in 2 d steps on a linear system (Gay 1979); Picard diverges."""
    problem = Affine.random(1, 10, 3.0)
    z0 = torch.zeros(1, 10, dtype=torch.float64)
    solution = dk.Broyden(max_steps=24, rtol=1e-9, stall_steps=None)(problem, z0)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, problem.solution(), rtol=1e-6, atol=1e-6)
    assert not dk.FixedPoint(max_steps=100, rtol=1e-9)(problem, z0).converged.any()


@pytest.mark.parametrize("norm", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("history_length", [None, 5])
def test_broyden_on_tanh_maps(norm: float, history_length: int | None) -> None:
    problem = Tanh.random(4, 40, norm)
    solver = dk.Broyden(max_steps=80, rtol=1e-8, history_length=history_length, stall_steps=None)
    solution = solver(problem, torch.zeros(4, 40, dtype=torch.float64))
    assert solution.converged.all()
    assert (problem(solution.z) - solution.z).norm(dim=1).max() < 1e-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history_dtype", [None, torch.bfloat16, torch.float32])
def test_broyden_in_every_dtype(dtype: torch.dtype, history_dtype: torch.dtype | None) -> None:
    problem = Tanh.random(3, 50, 0.8, dtype)
    rtol = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 3e-2)
    solver = dk.Broyden(max_steps=40, rtol=rtol, history_dtype=history_dtype)
    solution = solver(problem, torch.zeros(3, 50, dtype=dtype))
    assert solution.converged.all()
    assert solution.z.dtype == dtype
    expected = history_dtype or dtype
    assert solution.inverse_jacobian.directions.dtype == expected


@pytest.mark.parametrize("solver", SOLVERS)
def test_tuples_of_tensors(solver: type[dk.Solver]) -> None:
    """A state in two pieces is solved as the two of them in one vector."""
    problem = Tanh.random(3, 14, 0.8)

    def f(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        assert a.shape == (3, 2, 4)
        assert b.shape == (3, 6)
        out = problem(torch.cat((a.flatten(1), b), dim=1))
        return out[:, :8].reshape(3, 2, 4), out[:, 8:]

    z0 = torch.randn(3, 14, dtype=torch.float64)
    options = {"max_steps": 12, "rtol": 1e-6}
    pieces = solver(**options)(f, (z0[:, :8].reshape(3, 2, 4), z0[:, 8:]))
    whole = solver(**options)(problem, z0)
    assert isinstance(pieces.z, tuple)
    assert torch.equal(torch.cat((pieces.z[0].flatten(1), pieces.z[1]), dim=1), whole.z)
    assert torch.equal(pieces.steps, whole.steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_start_is_not_modified(solver: type[dk.Solver]) -> None:
    problem = Tanh.random(2, 9, 0.8)
    z0 = torch.randn(2, 9, dtype=torch.float64)
    kept = z0.clone()
    solver(max_steps=5)(problem, z0)
    assert torch.equal(z0, kept)


@pytest.mark.parametrize("solver", SOLVERS)
def test_statuses_and_steps_are_per_sample(solver: type[dk.Solver]) -> None:
    """Each sample has its own contraction factor, so each needs its own number of steps."""
    factor = torch.tensor([[0.0], [0.5], [0.999], [2.0]], dtype=torch.float64)
    gain = factor * torch.linspace(0.5, 1.0, 30, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return gain * torch.sin(z) + 1.0

    z0 = torch.zeros(4, 30, dtype=torch.float64)
    solution = solver(max_steps=8, rtol=1e-6)(f, z0)
    assert solution.steps[0] == 2
    assert solution.steps[0] < solution.steps[1] <= solution.steps[2] == 8
    assert solution.status[0] == dk.Status.CONVERGED
    assert solution.status[2] == dk.Status.MAX_STEPS
    for sample in range(4):
        used = int(solution.steps[sample])
        assert solution.trace[sample, :used].isfinite().all()
        assert solution.trace[sample, used:].isnan().all()
        assert solution.residual[sample] == solution.trace[sample, :used].min()


def test_relative_and_absolute_tolerance() -> None:
    problem = Affine.random(1, 12, 0.5)
    z0 = torch.zeros(1, 12, dtype=torch.float64)
    for options, bound in (
        ({"rtol": 1e-3}, lambda f_norm: 1e-3 * f_norm),
        ({"rtol": 0.0, "atol": 0.02}, lambda f_norm: 0.02),
        ({"rtol": 1e-3, "atol": 0.02}, lambda f_norm: 0.02 + 1e-3 * f_norm),
    ):
        solution = dk.FixedPoint(max_steps=60, **options)(problem, z0)
        assert solution.converged.all()
        assert solution.residual <= bound(problem(solution.z).norm())
        last_but_one = solution.trace[0, int(solution.steps) - 2]
        assert last_but_one > bound(problem(solution.z).norm())


def test_best_iterate_is_returned_when_a_solve_gets_worse() -> None:
    """Picard on an expansive map: the residual grows from the first step on."""
    gain = torch.tensor([[1.5, -1.5]], dtype=torch.float64)
    z0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    solution = dk.FixedPoint(max_steps=6, rtol=1e-6)(lambda z: gain * z + 1.0, z0)
    assert torch.equal(solution.z, z0)
    assert solution.residual == solution.trace[0, 0]
    assert solution.trace[0, 5] > solution.trace[0, 0]
    assert solution.status == dk.Status.MAX_STEPS


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_stalled(solver: type[dk.Solver], backend: str) -> None:
    """A map without a fixed point: the residual stays at its first value."""
    with dk.use_backend(backend):
        solution = solver(max_steps=50, rtol=0.0, stall_steps=7)(
            lambda z: z + 1.0, torch.zeros(1, 4, dtype=torch.float64)
        )
    assert solution.status == dk.Status.STALLED
    assert solution.steps == 8


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_diverged_by_growth(backend: str) -> None:
    with dk.use_backend(backend):
        solution = dk.FixedPoint(max_steps=50, rtol=0.0, divergence_factor=100.0)(
            lambda z: 3.0 * z + 1.0, torch.ones(1, 4, dtype=torch.float64)
        )
    assert solution.status == dk.Status.DIVERGED
    assert solution.trace[0, int(solution.steps) - 1] > 100 * solution.trace[0, 0]
    assert torch.equal(solution.z, torch.ones(1, 4, dtype=torch.float64))


class FailsAt:
    """A tanh map whose outputs for chosen samples are NaN at chosen evaluations."""

    def __init__(self, problem: Tanh, failures: dict[int, set[int]]) -> None:
        self.problem = problem
        self.failures = failures
        self.evaluation = 0

    def __call__(self, z: Tensor) -> Tensor:
        out = self.problem(z)
        for sample, evaluations in self.failures.items():
            if self.evaluation in evaluations:
                out[sample, 1] = torch.nan
        self.evaluation += 1
        return out


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_nan_sends_the_sample_back_to_its_best_iterate_once(backend: str) -> None:
    problem = Tanh.random(3, 25, 0.9)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    solver = dk.Broyden(max_steps=40, rtol=1e-9)
    with dk.use_backend(backend):
        clean = solver(problem, z0)
        once = solver(FailsAt(problem, {1: {4}}), z0)
        twice = solver(FailsAt(problem, {1: {4, 7}}), z0)
        at_once = solver(FailsAt(problem, {1: {0}}), z0)
    assert once.converged.all()
    assert once.trace[1, 4].isnan()
    # Evaluation 5 is at the best iterate so far, whose residual is known already.
    torch.testing.assert_close(once.trace[1, 5], once.trace[1, :4].min())
    assert twice.status[1] == dk.Status.DIVERGED
    assert twice.steps[1] == 8
    known = [0, 1, 2, 3, 5, 6]
    assert twice.residual[1] == twice.trace[1, known].min()
    torch.testing.assert_close(
        (problem(twice.z) - twice.z)[1].norm(), twice.residual[1], rtol=1e-9, atol=0.0
    )
    assert at_once.status[1] == dk.Status.DIVERGED
    assert at_once.steps[1] == 1
    assert torch.equal(at_once.z[1], z0[1])
    assert at_once.residual[1] == torch.inf
    if backend == "native":
        for solution in (once, twice, at_once):
            for sample in (0, 2):
                assert torch.equal(solution.z[sample], clean.z[sample])
                assert torch.equal(
                    solution.trace[sample].nan_to_num(-1.0), clean.trace[sample].nan_to_num(-1.0)
                )


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, 1e9])
def test_a_rejected_last_evaluation_stays_out_of_the_inverse(backend: str, bad: float) -> None:
    """Its pair says nothing about the Jacobian: H is that of one evaluation less, unfinished."""
    problem = Tanh.random(2, 25, 0.9)
    z0 = torch.zeros(2, 25, dtype=torch.float64)
    evaluation = 0

    def f(z: Tensor) -> Tensor:
        nonlocal evaluation
        evaluation += 1
        return torch.full_like(z, bad) if evaluation == 6 else problem(z)

    with dk.use_backend(backend):
        solution = dk.Broyden(max_steps=6, rtol=0.0)(f, z0)
        shorter = dk.Broyden(max_steps=5, rtol=0.0)(problem, z0)
        x = torch.randn(2, 25, dtype=torch.float64)
        assert (solution.status == dk.Status.MAX_STEPS).all()
        assert torch.equal(solution.inverse_jacobian.rank, shorter.inverse_jacobian.rank)
        torch.testing.assert_close(
            solution.inverse_jacobian.rmatvec(x), shorter.inverse_jacobian.rmatvec(x)
        )


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("history_length", [1, 2, 4])
def test_inverse_after_restarts(backend: str, history_length: int) -> None:
    """After a restart H is that of a fresh solve from the iterate where it happened."""
    problem = Tanh.random(1, 25, 0.9)
    z0 = torch.zeros(1, 25, dtype=torch.float64)
    capacity = history_length + 1
    steps = capacity + min(history_length, 2)
    iterates: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        iterates.append(z.clone())
        return problem(z)

    with dk.use_backend(backend):
        solver = dk.Broyden(max_steps=steps + 1, rtol=0.0, history_length=history_length)
        solution = solver(recorded, z0)
        oracle = DenseBroyden.run(problem.sample(0), iterates[capacity][0], steps - capacity)
        x = torch.randn(1, 25, dtype=torch.float64)
        torch.testing.assert_close(
            solution.inverse_jacobian.matvec(x)[0], oracle.inverse @ x[0], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("solver", SOLVERS)
def test_f_must_not_change_its_argument(solver: type[dk.Solver]) -> None:
    with pytest.raises(RuntimeError, match="changed z in place"):
        solver()(lambda z: z.mul_(0.5).add_(1.0), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="changed z in place"):
        solver()(lambda z: (z[0], torch.relu_(z[1])), (torch.zeros(2, 3), torch.zeros(2, 1)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_inference_mode(solver: type[dk.Solver]) -> None:
    with torch.inference_mode():
        solution = solver(max_steps=60, rtol=1e-6)(lambda z: 0.5 * z + 1.0, torch.zeros(2, 3))
        with pytest.raises(RuntimeError, match="changed z in place"):
            solver()(lambda z: z.mul_(0.5).add_(1.0), torch.zeros(2, 3))
    assert solution.converged.all()


def test_a_full_history_restarts_the_sample() -> None:
    problem = Tanh.random(1, 30, 0.9)
    z0 = torch.zeros(1, 30, dtype=torch.float64)
    solution = dk.Broyden(max_steps=6, rtol=0.0, history_length=3)(problem, z0)
    # Directions 0..3 fill the history; evaluation 4 restarts it with one direction, 5 adds one.
    assert solution.inverse_jacobian.rank.tolist() == [1]
    # After the restart the step is the damped one again: z5 = f(z4).
    iterates: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        iterates.append(z.clone())
        return problem(z)

    dk.Broyden(max_steps=6, rtol=0.0, history_length=3)(recorded, z0)
    torch.testing.assert_close(iterates[5], problem(iterates[4]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_inverse_may_be_left_out(backend: str) -> None:
    """Same solution, same record, whether samples converge or use their steps up."""
    problem = Tanh.random(3, 25, 0.8)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    for rtol in (0.0, 1e-3):
        solver = dk.Broyden(max_steps=9, rtol=rtol)
        with dk.use_backend(backend):
            kept, left_out = (solver(problem, z0, keep_inverse=keep) for keep in (True, False))
        assert left_out.inverse_jacobian is None
        assert kept.inverse_jacobian.rank.min() >= 1
        assert torch.equal(left_out.z, kept.z)
        assert torch.equal(left_out.trace.nan_to_num(-1.0), kept.trace.nan_to_num(-1.0))
        assert torch.equal(left_out.status, kept.status)


def test_an_already_solved_sample_stops_at_once() -> None:
    solution = dk.Broyden(max_steps=5)(lambda z: z.clone(), torch.randn(2, 3))
    assert solution.converged.all()
    assert solution.steps.tolist() == [1, 1]
    assert solution.inverse_jacobian.rank.tolist() == [0, 0]
    x = torch.randn(2, 3)
    assert torch.equal(solution.inverse_jacobian.matvec(x), -x)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 2, 2)])
def test_empty_states(solver: type[dk.Solver], shape: tuple[int, ...]) -> None:
    solution = solver(max_steps=5)(lambda z: z + 1.0, torch.zeros(shape))
    assert solution.z.shape == shape
    assert solution.steps.shape == (shape[0],)


@pytest.mark.parametrize("solver", SOLVERS)
def test_states_of_any_shape(solver: type[dk.Solver]) -> None:
    for shape in ((3, 1), (3, 2, 2, 2)):
        z0 = torch.randn(shape).transpose(-1, -1)
        solution = solver(max_steps=60, rtol=1e-5)(lambda z: 0.5 * z + 1.0, z0)
        torch.testing.assert_close(solution.z, torch.full(shape, 2.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number, at least 1; got 0"),
        ({"max_steps": 2.5}, "max_steps must be a whole number"),
        ({"max_steps": True}, "max_steps must be a whole number"),
        ({"rtol": -1.0}, "rtol must be finite and at least 0"),
        ({"atol": float("nan")}, "atol must be finite and at least 0"),
        ({"stall_steps": 0}, "stall_steps must be a whole number, at least 1"),
        ({"divergence_factor": 1.0}, "divergence_factor must be above 1"),
        ({"damping": 0.0}, "damping must be above 0"),
    ],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_options_out_of_range(
    solver: type[dk.Solver], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solver(**options)


def test_broyden_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="history_length must be a whole number, at least 1"):
        dk.Broyden(history_length=0)
    with pytest.raises(ValueError, match="gamma must be finite and above 0"):
        dk.Broyden(gamma=0.0)
    with pytest.raises(TypeError, match="history_dtype must be one of"):
        dk.Broyden(history_dtype=torch.float64)(lambda z: z, torch.zeros(1, 2))


@pytest.mark.parametrize("solver", SOLVERS)
def test_unknown_options_are_rejected(solver: type[dk.Solver]) -> None:
    with pytest.raises(TypeError, match="tol"):
        solver(tol=1e-3)
    with pytest.raises(TypeError):
        solver(30)


@pytest.mark.parametrize(
    ("f", "z0", "error", "message"),
    [
        (lambda z: z[:, :1], torch.zeros(2, 3), ValueError, r"shape it takes, \[2, 3\]; got"),
        (lambda z: z.double(), torch.zeros(2, 3), TypeError, "got torch.float64"),
        (lambda z: (z,), torch.zeros(2, 3), TypeError, "f must return what it takes, one tensor"),
        (lambda z: z[0], (torch.zeros(2, 3),), TypeError, "what it takes, a tuple of 1"),
        (lambda z: None, torch.zeros(2, 3), TypeError, "got NoneType"),
        (lambda z: z, torch.zeros(2, 3, dtype=torch.int64), TypeError, "A state must be one of"),
        (lambda z: z, torch.tensor(1.0), ValueError, "batch dimension first"),
        (lambda z: z, (), ValueError, "at least one tensor"),
        (lambda z: z, (torch.zeros(2), torch.zeros(3)), ValueError, "one batch size; got 2 and 3"),
        (lambda z: z, [torch.zeros(2)], TypeError, "tuple of tensors; got list"),
        (
            lambda z: z,
            (torch.zeros(2), torch.zeros(2).double()),
            TypeError,
            "share one dtype and device",
        ),
    ],
)
def test_wrong_states_are_named(f, z0, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dk.Broyden(max_steps=3)(f, z0)


def test_autocast_output_is_taken_in_the_states_dtype() -> None:
    weight = 0.5 * torch.eye(8)
    z0 = torch.zeros(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = dk.Broyden(max_steps=20, rtol=1e-2)(lambda z: z @ weight + 1.0, z0)
    assert solution.z.dtype == torch.float32
    assert solution.converged.all()


def test_an_error_in_f_passes_through_and_leaves_the_solver_usable() -> None:
    solver = dk.Broyden(max_steps=10)

    def broken(z: Tensor) -> Tensor:
        raise RuntimeError("the cell broke")

    with pytest.raises(RuntimeError, match="the cell broke"):
        solver(broken, torch.zeros(1, 3))
    assert solver(lambda z: 0.5 * z + 1.0, torch.zeros(1, 3)).converged.all()


def test_summary_reads_well() -> None:
    solution = dk.Broyden(max_steps=10, rtol=1e-6)(lambda z: 0.5 * z + 1.0, torch.zeros(2, 3))
    assert "2 converged" in solution.summary()
    assert "no samples" in dk.Broyden()(lambda z: z, torch.zeros(0, 3)).summary()
