"""Cases of structured cells and their problems."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cells.cases import CASES, QUICK_CASES, CellCase, parse_case
from benchmarks.cells.problem import KAPPA, Direction, make_problem

SMALL = CellCase(3, 8, 5)
CHAINS = CellCase(2, 4, 3, chains=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_name_reads_back(case: CellCase) -> None:
    assert parse_case(case.name) == case


@pytest.mark.parametrize("text", ["", "3x4", "3x4x0", "03x4x5", "3x4x5-chain", "3x4x5x6", "axbxc"])
def test_parse_case_rejects(text: str) -> None:
    with pytest.raises(ValueError, match="GRAPHSxNODESxFEATURES"):
        parse_case(text)


def test_quick_cases_are_cases() -> None:
    assert set(QUICK_CASES) <= set(CASES)


def test_random_graphs_are_undirected_normalised_and_apart() -> None:
    problem, _ = make_problem(SMALL)
    a = problem.coo(transposed=False).to_dense()
    torch.testing.assert_close(a, a.T, rtol=0, atol=0)
    assert bool((a.diagonal() > 0).all())
    assert float(torch.linalg.eigvalsh(a).max()) == pytest.approx(1.0, abs=1e-6)
    graph = torch.arange(3).repeat_interleave(problem.graph_ptr.diff())
    assert bool((graph[problem.source] == graph[problem.target]).all())
    assert len(problem.graph_ptr) == 4
    assert all(6 <= size <= 10 for size in problem.graph_ptr.diff())
    assert problem.symmetric


def test_chains_lead_one_way() -> None:
    problem, _ = make_problem(CHAINS)
    a = problem.coo(transposed=False).to_dense()
    one = torch.eye(4) + torch.diag(torch.ones(3), 1)
    torch.testing.assert_close((a > 0).float(), torch.block_diag(one, one), rtol=0, atol=0)
    torch.testing.assert_close(problem.coo(transposed=True).to_dense(), a.T, rtol=0, atol=0)
    assert not problem.symmetric


@pytest.mark.parametrize("case", [SMALL, CHAINS], ids=lambda case: case.name)
def test_anchors_solve_both_equations(case: CellCase) -> None:
    problem, anchors = make_problem(case)
    a, w = problem.coo(transposed=False).to_dense(), problem.weight
    assert float(w.abs().sum(1).max()) <= KAPPA + 1e-6
    x = anchors[Direction.SOLVE].T
    torch.testing.assert_close(torch.relu(w @ x @ a + problem.bias.T), x, rtol=0, atol=1e-12)
    assert 0.1 < float((x > 0).double().mean()) < 0.9, "relu must have something to decide"
    # (1 - Jᵀ) w = ℓ, with J of the vectorised equation, row by row.
    slope = (x.T > 0).double()
    jacobian = slope.reshape(-1, 1) * torch.kron(a.T.contiguous(), w)
    one = torch.eye(len(jacobian), dtype=torch.float64)
    expected = torch.linalg.solve(one - jacobian.T, problem.cotangent.reshape(-1))
    adjoint = anchors[Direction.ADJOINT]
    torch.testing.assert_close(adjoint.reshape(-1), expected, rtol=0, atol=1e-12)


def test_problem_is_the_same_in_both_dtypes() -> None:
    problem, _ = make_problem(SMALL)
    single = problem.to(torch.float32, torch.device("cpu"))
    for name in ("values", "weight", "bias", "cotangent", "slope"):
        exact, rounded = getattr(problem, name), getattr(single, name)
        torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=0)
