"""Every provider finds the answers of float64, and one that does not is refused."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cells.cases import CellCase
from benchmarks.cells.checks import DIFFERENCE_BOUND, RESIDUAL_BOUND, check_answer
from benchmarks.cells.problem import TOLERANCE, Direction, make_problem
from benchmarks.cells.providers import PROVIDERS, Bind
from benchmarks.provider import Provider, ProviderAbsentError

CASES = (CellCase(5, 8, 6), CellCase(1, 30, 7), CellCase(4, 10, 16, chains=True))


def _bind(provider: Provider[Bind]) -> Bind:
    try:
        return provider.load("cpu")
    except ProviderAbsentError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.value)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_answers_are_those_of_float64(
    provider: Provider[Bind], case: CellCase, direction: Direction, dtype: torch.dtype
) -> None:
    bind = _bind(provider)
    problem, anchors = make_problem(case)
    with torch.no_grad(), provider.context():
        solve = bind(problem.to(dtype, torch.device("cpu")), direction)
        for _ in range(2):  # buffers of the first call must not matter
            answer = solve()
    assert answer.dtype == dtype
    work = check_answer(answer, solve.steps, direction, problem, anchors[direction])
    assert work.refusal is None
    assert work.steps is not None
    assert 5 <= work.steps <= 60


def test_too_few_steps_are_refused() -> None:
    problem, anchors = make_problem(CASES[0])
    anchor = anchors[Direction.SOLVE]
    x = torch.zeros_like(anchor)
    for _ in range(15):
        x = problem.evaluate(Direction.SOLVE, x)
    early = check_answer(x, 15, Direction.SOLVE, problem, anchor)
    assert early.refusal is not None
    assert "residual" in early.refusal
    assert early.residual > 10 * TOLERANCE
    for _ in range(45):
        x = problem.evaluate(Direction.SOLVE, x)
    assert check_answer(x, 60, Direction.SOLVE, problem, anchor).refusal is None


def test_another_answer_and_nan_are_refused() -> None:
    problem, anchors = make_problem(CASES[0])
    anchor = anchors[Direction.ADJOINT]
    nan = check_answer(anchor * float("nan"), 1, Direction.ADJOINT, problem, anchor)
    assert nan.refusal == f"residual nan, above {RESIDUAL_BOUND:g}"
    other = check_answer(anchor, 1, Direction.ADJOINT, problem, anchor + 1e-4)
    assert other.refusal == f"answers differ by 1.0e-04, above {DIFFERENCE_BOUND:g}"
    with pytest.raises(ValueError, match="must return"):
        check_answer(anchor[:1], 1, Direction.ADJOINT, problem, anchor)
