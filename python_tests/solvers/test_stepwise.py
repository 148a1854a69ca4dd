"""A walk takes the steps of its solver, and leaves the end to the caller."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.solvers.machinery.stepwise import StepwiseSolve, never_done
from python_tests.problems import Gate, Tanh

SOLVERS = (dk.Broyden, dk.Anderson, dk.FixedPoint)


@pytest.mark.parametrize("kind", SOLVERS)
def test_visits_are_the_solvers_evaluations(kind: type[dk.Solver]) -> None:
    f = Tanh.random(3, 7, 0.8)
    z0 = torch.randn(3, 7, dtype=torch.float64)
    solver = kind(max_steps=6, rtol=0.0, atol=1e-3)
    seen: list[Tensor] = []

    def recorded(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return f(z)

    solution = solver(recorded, z0)
    walk = StepwiseSolve(solver, f, z0, keep_inverse=kind.builds_inverse)
    for number, z in enumerate(seen):
        visit = walk.advance()
        assert torch.equal(visit.z, z)
        assert torch.equal(visit.f_z, f(z))
        trace = solution.trace[:, number]
        assert torch.equal(visit.residual.nan_to_num(-1.0), trace.nan_to_num(-1.0))
        assert torch.equal(visit.judged, ~trace.isnan())
        torch.testing.assert_close(visit.f_norm, f(z).norm(dim=1))
        assert not visit.diverged.any()
    assert not walk.running.any()
    if kind.builds_inverse:
        x = torch.randn_like(z0)
        mine, other = walk.inverse(), solution.inverse_jacobian
        assert mine is not None
        assert other is not None
        assert torch.equal(mine.matvec(x), other.matvec(x))


def test_states_of_several_tensors() -> None:
    walk = StepwiseSolve(
        dk.Broyden(max_steps=3),
        lambda state: (torch.cos(state[0]), torch.sin(state[1])),
        (torch.zeros(2, 3), torch.ones(2, 1, 2)),
        keep_inverse=False,
    )
    visit = walk.advance()
    assert visit.z.shape == (2, 5)
    assert torch.equal(visit.f_z[:, :3], torch.ones(2, 3))
    with pytest.raises(TypeError, match="z0"):
        StepwiseSolve(dk.Broyden(), torch.cos, [1.0], keep_inverse=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [dk.Broyden, dk.FixedPoint])
def test_a_residual_of_zero_ends_nothing(kind: type[dk.Solver]) -> None:
    """Row 0 begins at one, and other rows move it later."""
    f = Gate()
    z = torch.zeros(2, 3, dtype=torch.float64)
    walk = StepwiseSolve(never_done(kind, max_steps=12), f, z, keep_inverse=kind.builds_inverse)
    iterates = f.broyden(11)
    for number in range(12):
        visit = walk.advance()
        if kind is dk.Broyden:
            torch.testing.assert_close(visit.z, iterates[number], rtol=1e-9, atol=1e-9)
        else:
            torch.testing.assert_close(visit.z, z)
            z = f(z)
        assert visit.judged.all()
        assert (visit.residual[0] == 0.0) == (number == 0)
        assert not visit.diverged.any()
    if kind.builds_inverse:
        inverse = walk.inverse()
        assert inverse is not None
        assert inverse.matvec(torch.ones_like(z)).isfinite().all()
