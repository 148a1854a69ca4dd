"""Every solver on every problem it is for, with the status that each sample must end with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import Status
from python_tests.problems import (
    Case,
    DenseBroyden,
    Map,
    heat_equation,
    pipe_network,
    powell,
    table_of_problems,
)

MAX_STEPS = 100
TOLERANCE = 1e-8
SOLVERS: dict[str, type[dk.Solver]] = {
    solver.__name__: solver for solver in dk.solvers.SOLVERS.values()
}

NAMES = list(table_of_problems())

# All converge but these.
EXCEPTIONS: dict[tuple[str, str], Status] = {
    # An eigenvalue of the Jacobian at the solution lies outside the unit circle.
    ("FixedPoint", "linear expansive"): Status.DIVERGED,
    ("FixedPoint", "symmetric expansive"): Status.DIVERGED,
    ("FixedPoint", "F"): Status.DIVERGED,
    ("FixedPoint", "F3"): Status.DIVERGED,
    ("FixedPoint", "F4"): Status.DIVERGED,
    ("FixedPoint", "F5"): Status.DIVERGED,
    # Its spectral radius is cos(π / 21) = 0.989: some 1,600 evaluations.
    ("FixedPoint", "heat equation"): Status.MAX_STEPS,
    # A window of 6 is restarted Krylov on these, too short for a state of 12 or 20.
    ("Anderson", "linear expansive"): Status.MAX_STEPS,
    ("Anderson", "heat equation"): Status.MAX_STEPS,
}


def _table() -> Iterator[tuple[str, str]]:
    """Every solver with every problem it is for."""
    for problem, case in table_of_problems().items():
        for solver in SOLVERS:
            if solver == "GMRES" and not case.affine:
                continue
            if solver == "LBFGS" and not case.symmetric:
                continue
            yield solver, problem


TABLE = list(_table())


def jacobians(f: Map, z: Tensor) -> Tensor:
    """J of each sample, [batch, dim, dim]."""
    samples = torch.arange(len(z))
    return torch.autograd.functional.jacobian(f, z)[samples, :, samples]


def newton(f: Map, z: Tensor) -> Tensor:
    """The fixed point by Newton's method with dense Jacobians, from a z close to it."""
    eye = torch.eye(z.shape[1], dtype=z.dtype)
    for _ in range(8):
        z = z + torch.linalg.solve(jacobians(f, z) - eye, z - f(z))
    return z


def solve(solver: str, case: Case) -> dk.Solution:
    return SOLVERS[solver](max_steps=MAX_STEPS, rtol=0.0, atol=TOLERANCE, stall_steps=None)(
        case.f, case.z0
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("solver", "problem"), TABLE)
def test_status(solver: str, problem: str, seed: int) -> None:
    torch.manual_seed(seed)
    case = table_of_problems()[problem]
    solution = solve(solver, case)
    expected = EXCEPTIONS.get((solver, problem), Status.CONVERGED)
    assert [Status(s) for s in solution.status.tolist()] == [expected] * len(case.z0)
    residual = (case.f(solution.z) - solution.z).norm(dim=1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-3, atol=1e-12)
    if expected == Status.CONVERGED:
        assert (residual <= 1.001 * TOLERANCE).all()
    else:
        # The best iterate is returned, whatever became of the last one.
        first = (case.f(case.z0) - case.z0).norm(dim=1)
        assert (residual <= first).all()
        assert (residual > TOLERANCE).all()


@pytest.mark.parametrize("problem", NAMES)
def test_solvers_agree_with_newtons_method(problem: str) -> None:
    """Of equations with several solutions, each solver finds one, which Newton's then keeps."""
    case = table_of_problems()[problem]
    for solver, name in TABLE:
        if name != problem or (solver, name) in EXCEPTIONS:
            continue
        found = solve(solver, case).z
        exact = newton(case.f, found)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_every_expectation_is_used() -> None:
    assert set(EXCEPTIONS) <= set(TABLE)
    assert {solver for solver, _ in TABLE} == set(SOLVERS)
    assert len(NAMES) == 16


@pytest.mark.parametrize("problem", NAMES)
def test_broyden_follows_the_dense_method(problem: str) -> None:
    """Its iterates are those of the textbook formula with a dense inverse, step by step.

    For as long as rounding allows: on these problems the two part by a factor of a few per step.
    """
    case = table_of_problems()[problem]
    iterates: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        iterates.append(z.clone())
        return case.f(z)

    steps = 6
    dk.Broyden(max_steps=steps + 1, rtol=0.0, atol=TOLERANCE, stall_steps=None)(recorded, case.z0)
    for sample in range(len(case.z0)):

        def one(z: Tensor, sample: int = sample) -> Tensor:
            batch = case.z0.clone()
            batch[sample] = z
            return case.f(batch)[sample]

        oracle = DenseBroyden.run(one, case.z0[sample], min(steps, len(iterates) - 1))
        size = max(float(z.norm()) for z in oracle.iterates)
        for mine, dense in zip(iterates, oracle.iterates, strict=False):
            assert (mine[sample] - dense).norm() <= 1e-8 * size


def test_the_problems_are_what_they_say() -> None:
    """Affine and symmetric where they claim it, and nowhere else."""
    for name, case in table_of_problems().items():
        here, there = (jacobians(case.f, z) for z in (case.z0, case.z0 + 0.1))
        assert torch.allclose(here, there, rtol=1e-9, atol=1e-12) == case.affine, name
        assert torch.allclose(there, there.mT, rtol=1e-9, atol=1e-12) == case.symmetric, name
        if case.symmetric:
            assert torch.linalg.eigvalsh(there).max() < 1.0


def test_known_solutions() -> None:
    """−u″ = 1 is solved by x (1 − x) / 2, exactly on a grid; the others are in print."""
    x = torch.linspace(0, 1, 12, dtype=torch.float64)[1:-1]
    u = (x * (1 - x) / 2)[None]
    torch.testing.assert_close(heat_equation(10, torch.ones(1, 10).double())(u), u)
    z = torch.tensor([[1.098159e-5, 9.106146]], dtype=torch.float64)
    assert powell(z).norm() < 1e-2
    pipes = torch.ones(1, 4, dtype=torch.float64)
    assert torch.equal(pipe_network(pipes), torch.zeros(1, 4, dtype=torch.float64))
