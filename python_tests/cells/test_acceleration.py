"""What accelerated steps save on symmetric cells: about the square root of the steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from python_tests.cells.solves import solve_dense, solve_graph
from python_tests.ops.conftest import COMPILED, running
from python_tests.tolerances import assert_close

NODES = 100


@pytest.fixture(params=(*COMPILED, "reference"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param) as name:
        yield name


def steps_to_1e_8(solution: dk.Solution) -> int:
    assert solution.converged.all()
    return int(solution.steps.max())


def ring() -> Tensor:
    """Each node takes half of each neighbour: eigenvalues cos(2 π k / n), from −1 to 1."""
    shifted = torch.eye(NODES, dtype=torch.float64).roll(1, 0)
    return (shifted + shifted.T) / 2


def test_a_symmetric_ring(backend: str) -> None:
    weight = 0.99 * torch.eye(3, dtype=torch.float64)
    b = torch.randn(NODES, 3, dtype=torch.float64)
    matrix = ring()
    index = matrix.nonzero().T
    adjacency = Adjacency.from_coo(index, matrix[index[0], index[1]], nodes=NODES)
    seen: list[dk.Solution] = []
    z = solve_graph(
        b,
        weight,
        adjacency,
        activation="identity",
        rtol=1e-8,
        max_steps=2000,
        on_solve=seen.append,
    )
    assert steps_to_1e_8(seen[0]) < 100
    identity = torch.eye(NODES, dtype=torch.float64)
    assert_close(z, torch.linalg.solve(identity - 0.99 * matrix, b), torch.float32)


def test_a_symmetric_dense_cell(backend: str) -> None:
    turn = torch.linalg.qr(torch.randn(NODES, NODES, dtype=torch.float64)).Q
    eigenvalues = torch.linspace(-0.99, 0.99, NODES, dtype=torch.float64)
    weight = turn @ (eigenvalues[:, None] * turn.T)
    u = torch.randn(4, NODES, dtype=torch.float64)
    seen: list[dk.Solution] = []
    for accelerate in (True, False):
        z = solve_dense(
            u,
            weight,
            activation="identity",
            rtol=1e-8,
            max_steps=3000,
            accelerate=accelerate,
            on_solve=seen.append,
        )
        solved = torch.linalg.solve(torch.eye(NODES, dtype=torch.float64) - weight, u.T).T
        assert_close(z, solved, torch.float32)
    fast, plain = map(steps_to_1e_8, seen)
    assert fast < 100 < 1000 < plain
