"""Every solver on problems of any shape, layout, dtype and scale: right, and sample by sample."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import deq_kernels as dk
from deq_kernels.ops import Status
from python_tests.properties.cases import LAYOUTS, TOLERANCE, Contraction, laid_out
from python_tests.properties.solvers import solved_problems


def start_of(problem: Contraction, layout: str) -> torch.Tensor:
    """A start of the problem's scale, and zero for a sample whose solution is zero."""
    return laid_out(problem.bias * 2.0**problem.exponent, layout)


@given(solved_problems(), st.sampled_from(LAYOUTS))
def test_contractions_are_solved(case: tuple[dk.Solver, Contraction], start_layout: str) -> None:
    solver, problem = case
    z0 = start_of(problem, start_layout)
    before = z0.clone()
    solution = solver(problem, z0)
    assert torch.equal(z0, before)
    assert isinstance(solution.z, torch.Tensor)
    assert solution.z.shape == z0.shape
    assert solution.z.dtype == z0.dtype
    assert solution.status.tolist() == [Status.CONVERGED] * len(z0)
    exact = problem.exactly()
    z = solution.z.double()
    f_z = exact(z)
    # What the solver saw was rounded in f.
    tolerance = TOLERANCE[z0.dtype] + 4 * torch.finfo(z0.dtype).eps
    assert ((f_z - z).norm(dim=1) <= tolerance * f_z.norm(dim=1)).all()


@given(solved_problems(), st.data())
def test_a_sample_alone_has_the_same_bits(
    case: tuple[dk.Solver, Contraction], data: st.DataObject
) -> None:
    solver, problem = case
    together = solver(problem, start_of(problem, "dense"))
    if len(problem.bias) == 0:
        assert together.evaluations == 0
        return
    index = data.draw(st.integers(0, len(problem.bias) - 1))
    single = problem.sample(index)
    alone = solver(single, start_of(single, "dense"))
    assert torch.equal(alone.z[0], together.z[index])
    assert alone.status[0] == together.status[index]
    steps = int(alone.steps[0])
    assert steps == together.steps[index]
    assert torch.equal(alone.trace[0, :steps], together.trace[index, :steps])


@given(solved_problems())
def test_a_power_of_two_passes_through(case: tuple[dk.Solver, Contraction]) -> None:
    """Without a bit changed, except in float16, whose range is too small for that."""
    solver, problem = case
    assume(problem.bias.dtype != torch.float16)
    unscaled = problem.unscaled()
    expected = solver(unscaled, start_of(unscaled, "dense"))
    scaled = solver(problem, start_of(problem, "dense"))
    assert torch.equal(scaled.steps, expected.steps)
    assert torch.equal(scaled.z, expected.z * 2.0**problem.exponent)
