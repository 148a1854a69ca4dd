"""The plain PyTorch baseline against Broyden's method with a dense matrix."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.broyden import plain_pytorch
from benchmarks.broyden.cases import Case
from benchmarks.broyden.problem import make_problem

Solve = Callable[..., torch.Tensor]
SOLVES = (plain_pytorch.solve_textbook, plain_pytorch.solve_rearranged)


def _dense_broyden(f: Callable[[np.ndarray], np.ndarray], z0: np.ndarray, steps: int) -> np.ndarray:
    """Good Broyden for one sample, H updated as a matrix by the textbook formula."""
    z = z0.copy()
    h = -np.eye(z.size)
    r = f(z) - z
    iterates, norms = [z], [np.linalg.norm(r)]
    for _ in range(steps):
        s = -h @ r
        z = z + s
        r_new = f(z) - z
        y = r_new - r
        h = h + np.outer(s - h @ y, s @ h) / (s @ h @ y)
        r = r_new
        iterates.append(z)
        norms.append(np.linalg.norm(r))
    return iterates[int(np.argmin(norms))]


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_agrees_with_dense_broyden(solve: Solve, steps: int) -> None:
    problem = make_problem(Case(3, 24, steps), dtype=torch.float64)

    def f_of_one(z: np.ndarray) -> np.ndarray:
        row = torch.from_numpy(z).expand(3, -1)
        return problem.f(row)[0].numpy().copy()

    expected = np.stack([_dense_broyden(f_of_one, z0.numpy(), steps) for z0 in problem.z0])
    actual = solve(problem.f, problem.z0, steps)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solve", SOLVES)
def test_leaves_the_start_alone_and_counts_evaluations(solve: Solve) -> None:
    problem = make_problem(Case(2, 24, 7), dtype=torch.float64)
    before = problem.z0.clone()
    solve(problem.f, problem.z0, 7)
    torch.testing.assert_close(problem.z0, before, rtol=0, atol=0)
    assert problem.f.evaluations == 8
