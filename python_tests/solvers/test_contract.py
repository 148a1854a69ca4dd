"""What GMRES, AdjointBroyden and LBFGS share with every solver: states, options, statuses, bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def ones(z: Any) -> Any:
    return tuple(map(torch.ones_like, z)) if isinstance(z, tuple) else torch.ones_like(z)


@dataclass(frozen=True)
class Case:
    """A solver with options, and the maps it is for: elementwise, so exact about batches."""

    solver: type[dk.Solver]
    options: dict[str, Any]
    cubic: float

    def make(self, **options: Any) -> dk.Solver:
        return self.solver(**{**self.options, **options})

    def map(self, dim: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """z − g(z) with g increasing; affine where `cubic` is zero."""
        gain = torch.linspace(0.3, 1.7, dim).to(dtype)
        shift = torch.linspace(0.1, 1.0, dim).to(dtype)
        return lambda z: z - (gain * z - shift + self.cubic * z * z * z)


CASES = (
    Case(dk.GMRES, {"restart": 4}, 0.0),
    Case(dk.AdjointBroyden, {}, 0.1),
    Case(dk.AdjointBroyden, {"opa_every": 2, "outer_gradient": ones}, 0.1),
    Case(dk.LBFGS, {}, 0.1),
    Case(dk.LBFGS, {"history_length": 3}, 0.1),
    Case(dk.LBFGS, {"line_search": "armijo", "opa_every": 2, "outer_gradient": ones}, 0.1),
    Case(dk.LBFGS, {"line_search": None}, 0.1),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.solver.__name__)


def results(solver: dk.Solver, f: Callable[[Tensor], Tensor], z0: Tensor) -> list[Tensor]:
    solution = solver(f, z0)
    assert isinstance(solution.z, Tensor)
    out = [solution.z, solution.trace.nan_to_num(-1.0), solution.steps, solution.status]
    if solution.inverse_jacobian is not None:
        out += [solution.inverse_jacobian.matvec(z0 + 1), solution.inverse_jacobian.rmatvec(z0 + 1)]
    return out


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(case: Case, dtype: torch.dtype) -> None:
    f = case.map(40, dtype)
    rtol = {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 3e-2)
    solution = case.make(max_steps=60, rtol=rtol)(f, torch.zeros(3, 40, dtype=dtype))
    assert solution.converged.all()
    assert solution.z.dtype == dtype
    exact = (f(solution.z).double() - solution.z.double()).norm(dim=1)
    # 16-bit maps round away more than the residual is known to.
    assert (exact <= 1.01 * rtol * f(solution.z).double().norm(dim=1)).all()
    if solution.inverse_jacobian is not None:
        x = torch.randn(3, 40).to(dtype)
        assert solution.inverse_jacobian.matvec(x).dtype == dtype


@every_case
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e15])
def test_every_scale(case: Case, scale: float) -> None:
    """Neither the norms nor the algebra leave their range where the state itself does not."""
    gain = torch.linspace(0.3, 1.7, 20)
    shift = scale * torch.linspace(0.1, 1.0, 20)
    solution = case.make(max_steps=60, rtol=1e-5)(
        lambda z: z - (gain * z - shift), torch.zeros(2, 20)
    )
    assert solution.converged.all()
    exact = (shift / gain).expand(2, -1)
    torch.testing.assert_close(solution.z / scale, exact / scale, rtol=1e-3, atol=1e-4)


@every_case
def test_tuples_of_tensors(case: Case) -> None:
    """A state in two pieces is solved as the two of them in one vector."""
    flat = case.map(14, torch.float64)

    def f(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        assert a.shape == (3, 2, 4)
        assert b.shape == (3, 6)
        out = flat(torch.cat((a.flatten(1), b), dim=1))
        return out[:, :8].reshape(3, 2, 4), out[:, 8:]

    z0 = torch.randn(3, 14, dtype=torch.float64)
    solver = case.make(max_steps=12, rtol=1e-6)
    pieces = solver(f, (z0[:, :8].reshape(3, 2, 4), z0[:, 8:]))
    whole = solver(flat, z0)
    assert isinstance(pieces.z, tuple)
    assert torch.equal(torch.cat((pieces.z[0].flatten(1), pieces.z[1]), dim=1), whole.z)
    assert torch.equal(pieces.steps, whole.steps)


@every_case
def test_the_start_is_not_modified(case: Case) -> None:
    z0 = torch.randn(2, 9, dtype=torch.float64)
    kept = z0.clone()
    case.make(max_steps=5)(case.map(9, torch.float64), z0)
    assert torch.equal(z0, kept)


@every_case
def test_the_residual_is_that_of_the_returned_state(case: Case) -> None:
    f = case.map(12, torch.float64)
    z0 = torch.randn(4, 12, dtype=torch.float64)
    for max_steps in (1, 2, 3, 4, 7):
        calls = []

        def counted(z: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return f(z)

        solution = case.make(max_steps=max_steps, rtol=1e-14)(counted, z0)
        residual = (f(solution.z) - solution.z).norm(dim=1)
        torch.testing.assert_close(solution.residual, residual, rtol=1e-9, atol=1e-13)
        assert len(calls) == int(solution.steps.max()) <= max_steps
        for sample in range(4):
            used = int(solution.steps[sample])
            assert solution.trace[sample, :used].isfinite().all()
            assert solution.trace[sample, used:].isnan().all()
        assert set(solution.status.tolist()) <= {dk.Status.MAX_STEPS, dk.Status.CONVERGED}


@every_case
def test_statuses_and_steps_are_per_sample(case: Case) -> None:
    f = case.map(30, torch.float64)
    solved = case.make(max_steps=200, rtol=1e-15, atol=1e-14)(f, torch.zeros(1, 30).double()).z
    z0 = torch.cat((solved, torch.zeros_like(solved), torch.full_like(solved, torch.nan)))
    solution = case.make(max_steps=7, rtol=1e-9)(f, z0)
    assert solution.status.tolist() == [
        dk.Status.CONVERGED,
        dk.Status.MAX_STEPS,
        dk.Status.DIVERGED,
    ]
    assert solution.steps.tolist() == [1, 7, 1]
    assert torch.equal(solution.z[0], solved[0])
    assert solution.z[2].isnan().all()
    assert solution.residual[2] == torch.inf


@every_case
def test_a_map_without_a_fixed_point_stalls(case: Case) -> None:
    solution = case.make(max_steps=90, rtol=0.0, stall_steps=7)(
        lambda z: z + 1.0, torch.zeros(1, 4, dtype=torch.float64)
    )
    assert solution.status == dk.Status.STALLED
    assert solution.steps <= 7 + 6


class FailsAt:
    """A map whose output for one sample is NaN at chosen evaluations."""

    def __init__(self, f: Callable[[Tensor], Tensor], sample: int, evaluations: set[int]) -> None:
        self.f, self.sample, self.evaluations = f, sample, evaluations
        self.evaluation = 0

    def __call__(self, z: Tensor) -> Tensor:
        out = self.f(z)
        if self.evaluation in self.evaluations:
            failed = torch.zeros_like(out)
            failed[self.sample, 1] = torch.nan
            out = out + failed
        self.evaluation += 1
        return out


@every_case
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_one_nan_is_overcome(case: Case, at: int) -> None:
    f = case.map(25, torch.float64)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    solver = case.make(max_steps=80, rtol=1e-8)
    clean, once = solver(f, z0), solver(FailsAt(f, 1, {at}), z0)
    assert clean.converged.all()
    assert once.converged.all()
    assert once.trace[1, at].isnan()
    torch.testing.assert_close(once.z, clean.z, rtol=1e-6, atol=1e-6)
    for sample in (0, 2):
        assert torch.equal(once.z[sample], clean.z[sample])
        assert torch.equal(once.trace[sample].nan_to_num(-1), clean.trace[sample].nan_to_num(-1))


@pytest.mark.parametrize(
    "solver", [dk.AdjointBroyden, lambda **options: dk.LBFGS(line_search=None, **options)]
)
def test_a_nan_sends_the_sample_back_with_an_empty_history(
    solver: Callable[..., dk.Solver],
) -> None:
    f = CASES[1].map(25, torch.float64)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    points: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        points.append(z.detach().clone())
        return f(z)

    solution = solver(max_steps=7, rtol=0.0)(FailsAt(recorded, 1, {4}), z0)
    best = int(solution.trace[1, :4].argmin())
    assert torch.equal(points[5][1], points[best][1])
    torch.testing.assert_close(solution.trace[1, 5], solution.trace[1, best])
    # What was learned since the return: from evaluation 5 where one is enough, and from 6.
    learned = solution.inverse_jacobian.rank
    assert learned[1] == 2
    assert (learned[[0, 2]] >= 6).all()


@every_case
def test_lasting_nan_is_divergence(case: Case) -> None:
    f = case.map(25, torch.float64)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    broken = FailsAt(f, 1, set(range(2, 500)))
    solution = case.make(max_steps=60, rtol=1e-8, stall_steps=20)(broken, z0)
    assert solution.status[0] == solution.status[2] == dk.Status.CONVERGED
    # A line search shortens the step for as long as the rule for stalls allows.
    searching = isinstance(case.make(), dk.LBFGS) and case.make().line_search is not None
    expected = {dk.Status.STALLED, dk.Status.MAX_STEPS} if searching else {dk.Status.DIVERGED}
    assert int(solution.status[1]) in expected
    assert solution.z[1].isfinite().all()
    assert solution.residual[1].isfinite()


@every_case
@pytest.mark.parametrize(
    ("dtype", "dim"), [(torch.float64, 7), (torch.float32, 4097), (torch.bfloat16, 7)]
)
def test_neighbours_and_threads_change_no_bit(
    set_threads: Callable[[int], None], case: Case, dtype: torch.dtype, dim: int
) -> None:
    """Alone, among others, next to a solved sample and next to one that is NaN."""
    f = case.map(dim, dtype)
    z0 = torch.randn(5, dim).to(dtype)
    z0[2] = torch.nan
    solver = case.make(max_steps=9, rtol=1e-5)
    z0[3] = case.make(max_steps=60, rtol=1e-7)(f, z0[3:4]).z[0]
    set_threads(2)
    together = results(solver, f, z0)
    set_threads(1)
    for now, before in zip(results(solver, f, z0.flip(0)), together, strict=True):
        assert torch.equal(now.flip(0).nan_to_num(-2.0), before.nan_to_num(-2.0))
    for sample in (0, 1, 3, 4):
        alone = results(solver, f, z0[sample : sample + 1])
        for now, before in zip(alone, together, strict=True):
            assert torch.equal(now[0], before[sample])


@every_case
def test_f_must_not_change_its_argument(case: Case) -> None:
    with pytest.raises(RuntimeError, match="changed z in place"):
        case.make()(lambda z: z.mul_(0.5).add_(1.0), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="changed z in place"):
        case.make()(lambda z: (z[0], torch.relu_(z[1])), (torch.zeros(2, 3), torch.zeros(2, 1)))


@every_case
def test_inference_mode(case: Case) -> None:
    with torch.inference_mode():
        solution = case.make(max_steps=60, rtol=1e-6)(lambda z: 0.5 * z + 1.0, torch.zeros(2, 3))
    assert solution.converged.all()


@every_case
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 2, 2)])
def test_empty_states(case: Case, shape: tuple[int, ...]) -> None:
    solution = case.make(max_steps=5)(lambda z: z + 1.0, torch.zeros(shape))
    assert solution.z.shape == shape
    assert solution.steps.shape == (shape[0],)


@every_case
def test_states_of_any_shape(case: Case) -> None:
    for shape in ((3, 1), (3, 2, 2, 2)):
        z0 = torch.randn(shape).transpose(-1, -1)
        solution = case.make(max_steps=60, rtol=1e-5)(lambda z: 0.5 * z + 1.0, z0)
        torch.testing.assert_close(solution.z, torch.full(shape, 2.0), rtol=1e-4, atol=1e-4)


@every_case
def test_the_inverse_may_be_left_out(case: Case) -> None:
    f = case.map(25, torch.float64)
    z0 = torch.zeros(3, 25, dtype=torch.float64)
    for rtol in (0.0, 1e-3):
        solver = case.make(max_steps=9, rtol=rtol)
        kept, left_out = (solver(f, z0, keep_inverse=keep) for keep in (True, False))
        assert left_out.inverse_jacobian is None
        assert (kept.inverse_jacobian is not None) == solver.builds_inverse
        assert torch.equal(left_out.z, kept.z)
        assert torch.equal(left_out.trace.nan_to_num(-1.0), kept.trace.nan_to_num(-1.0))
        assert torch.equal(left_out.status, kept.status)


@every_case
def test_the_reference_backend_agrees(case: Case) -> None:
    f = case.map(30, torch.float64)
    z0 = torch.randn(2, 30, dtype=torch.float64)
    solver = case.make(max_steps=8, rtol=0.0)
    native = results(solver, f, z0)
    with dk.use_backend("reference"):
        for now, before in zip(results(solver, f, z0), native, strict=True):
            torch.testing.assert_close(now, before, rtol=1e-7, atol=1e-9)


@every_case
def test_autocast_output_is_taken_in_the_states_dtype(case: Case) -> None:
    weight = 0.5 * torch.eye(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = case.make(max_steps=30, rtol=1e-2)(lambda z: z @ weight + 1.0, torch.zeros(2, 8))
    assert solution.z.dtype == torch.float32
    assert solution.converged.all()


@every_case
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number, at least 1; got 0"),
        ({"rtol": -1.0}, "rtol must be finite and at least 0"),
        ({"atol": float("nan")}, "atol must be finite and at least 0"),
        ({"divergence_factor": 1.0}, "divergence_factor must be above 1"),
    ],
)
def test_options_out_of_range(case: Case, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.make(**options)


@every_case
def test_unknown_options_are_rejected(case: Case) -> None:
    with pytest.raises(TypeError, match="tol"):
        case.make(tol=1e-3)
    with pytest.raises(TypeError):
        case.solver(30)  # type: ignore[misc]


@every_case
def test_an_error_in_f_passes_through_and_leaves_the_solver_usable(case: Case) -> None:
    solver = case.make(max_steps=20)

    def broken(z: Tensor) -> Tensor:
        raise RuntimeError("the cell broke")

    with pytest.raises(RuntimeError, match="the cell broke"):
        solver(broken, torch.zeros(1, 3))
    assert solver(lambda z: 0.5 * z + 1.0, torch.zeros(1, 3)).converged.all()


def test_solves_are_joined() -> None:
    solver = dk.FixedPoint(max_steps=7, rtol=0.0)
    solutions = [solver(lambda z: 0.5 * z + 1, torch.zeros(2, k).double()) for k in (1, 3)]
    assert dk.Solution.joined(solutions[:1]) is solutions[0]
    both = dk.Solution.joined(solutions)
    assert both.z is solutions[1].z
    assert both.steps.tolist() == [7] * 4
    assert both.residual.tolist() == [*solutions[0].residual, *solutions[1].residual]
    assert both.evaluations == 28
    assert (both.rtol, both.atol) == (solutions[1].rtol, solutions[1].atol)
