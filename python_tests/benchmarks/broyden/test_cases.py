"""Cases, their traffic and their problem."""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from benchmarks.broyden.cases import CASES, QUICK_CASES, Case, parse_case
from benchmarks.broyden.problem import make_problem


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_name_reads_back(case: Case) -> None:
    assert parse_case(case.name, Case) == case


@pytest.mark.parametrize("text", ["", "3x4", "3x4x0", "03x4x5", "3x-4x5", "3x4x5x6", "axbxc"])
def test_parse_case_rejects(text: str) -> None:
    with pytest.raises(ValueError, match="BATCHxDIMxSTEPS"):
        parse_case(text, Case)


def test_quick_cases_are_cases() -> None:
    assert set(QUICK_CASES) <= set(CASES)


def test_floor_of_three_steps_counted_by_hand() -> None:
    # k = 0, 1, 2 stored directions: 6 + 8 + 10 vectors of 5 elements for each of 2 samples.
    assert Case(2, 5, 3).floor_bytes(4) == (6 + 8 + 10) * 5 * 2 * 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_floor_is_the_sum_over_the_steps(case: Case) -> None:
    elements = sum(2 * k + 6 for k in range(case.steps)) * case.batch * case.dim
    assert case.floor_bytes(8) == 8 * elements


def test_floor_with_a_narrower_history_saves_only_history_reads() -> None:
    case = Case(2, 5, 3)
    saved = case.floor_bytes(4) - case.floor_bytes(4, 2)
    assert saved == (0 + 2 + 4) * 5 * 2 * (4 - 2)


def test_working_set_holds_directions_and_three_states() -> None:
    assert Case(2, 5, 3).working_set_bytes(4) == 2 * 5 * 4 * (3 + 3)
    assert Case(2, 5, 3).working_set_bytes(4, 2) == 2 * 5 * (3 * 2 + 3 * 4)


def test_problem_is_the_same_in_both_dtypes() -> None:
    case = Case(3, 40, 5)
    single = make_problem(case, dtype=torch.float32)
    double = make_problem(case, dtype=torch.float64)
    torch.testing.assert_close(single.z0.double(), double.z0, rtol=0, atol=0)
    torch.testing.assert_close(
        single.f(single.z0).double(), double.f(double.z0), rtol=1e-6, atol=1e-6
    )


def test_map_is_affine_with_the_stated_spectrum_and_counts_its_calls() -> None:
    problem = make_problem(Case(1, 50, 5), dtype=torch.float64)
    zero = torch.zeros(1, 50, dtype=torch.float64)
    offset = problem.f(zero).clone()
    a = problem.f(torch.ones_like(zero)) - offset
    assert problem.f.evaluations == 2
    assert a.min().item() == pytest.approx(-2.0, abs=1e-6)
    assert a.max().item() == pytest.approx(0.9, abs=1e-6)


def test_residual_norm_matches_the_map_and_is_not_counted() -> None:
    problem = make_problem(Case(3, 50, 5), dtype=torch.float64)
    norm = problem.f.residual_norm(problem.z0)
    assert problem.f.evaluations == 0
    expected = torch.linalg.vector_norm(problem.f(problem.z0) - problem.z0, dim=1)
    torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)


def test_result_of_the_map_survives_the_next_call() -> None:
    problem = make_problem(Case(1, 8, 5), dtype=torch.float64)
    first = problem.f(problem.z0)
    kept = first.clone()
    problem.f(problem.z0 + 1)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


@pytest.mark.skipif(
    find_spec("deq_kernels._build") is None, reason="the native launch planner was not built"
)
@pytest.mark.parametrize("history_bytes", [2, 4])
def test_floor_agrees_with_the_native_launch_planner(history_bytes: int) -> None:
    case = Case(3, 5000, 7)
    planned = sum(
        import_module("deq_kernels._build").plan_stream(
            batch=case.batch,
            dim=case.dim,
            rank=k,
            state_bytes=4,
            history_bytes=history_bytes,
            threads=1,
        )["bytes_moved"]
        for k in range(case.steps)
    )
    assert case.floor_bytes(4, history_bytes) == planned
