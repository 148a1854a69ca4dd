"""What a structured cell returns and the slopes its gradient is taken with belong together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from python_tests.cells.batches import ACTIVATIONS, DOUBLE, contraction, graph_batch
from python_tests.cells.solves import solve_dense, solve_graph
from python_tests.tolerances import assert_close

NODES = 10
PUBLISHED: dict[str, Any] = {"norm": "max", "rtol": 0.0, "atol": 3e-6}
TIGHT = dk.FixedPoint(max_steps=500, rtol=1e-12)


def chain() -> tuple[Adjacency, Tensor]:
    """A chain whose edges lead from each node to the next one, and Aᵀ."""
    source = torch.arange(NODES - 1)
    adjacency = Adjacency.from_coo(
        torch.stack([source, source + 1]), torch.ones(NODES - 1, dtype=DOUBLE), nodes=NODES
    )
    return adjacency, torch.diag(torch.ones(NODES - 1, dtype=DOUBLE), -1)


def leaves() -> tuple[Tensor, Tensor]:
    """b, of the first node alone, and a W that makes states a tenth with each node."""
    b = torch.zeros(NODES, 6, dtype=DOUBLE)
    b[0] = torch.rand(6)
    weight = contraction(6, 0.1) + 0.02
    return b.requires_grad_(), weight.requires_grad_()


def loss_of(x: Tensor) -> Tensor:
    """Behind rows of norm 1."""
    direction = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    return (F.normalize(x, dim=1) * direction).sum()


def gradients(x: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(x), (b, weight))])


def published(b: Tensor, weight: Tensor, transposed: Tensor) -> tuple[Tensor, Tensor]:
    """X and its gradients as IGNN's code has them: X = φ(Z) with D = φ'(Z), by a dense solve."""
    x = torch.zeros_like(b)
    while True:
        z = transposed @ x @ weight.T + b
        x, before = torch.relu(z), x
        if (x - before).abs().max() < 3e-6:
            break
    x = x.detach().requires_grad_()
    (cotangent,) = torch.autograd.grad(loss_of(x), x)
    slopes = (z > 0).double().flatten()
    matrix = torch.kron(transposed, weight).T * slopes
    identity = torch.eye(len(matrix), dtype=DOUBLE)
    w = torch.linalg.solve(identity - matrix, cotangent.flatten())
    g = (slopes * w).view_as(b)
    return x, torch.cat([g.flatten(), (g.T @ transposed @ x).flatten()])


def test_the_gradient_is_that_of_the_published_code_under_its_rule() -> None:
    """Nodes that nothing has reached are zero in X and where its slopes are taken alike."""
    adjacency, transposed = chain()
    b, weight = leaves()
    options = {"activation": "relu", "accelerate": False, **PUBLISHED}
    x = solve_graph(b, weight, adjacency, gradient=dk.Implicit(solver=TIGHT), **options)
    expected, of_published = published(b.detach(), weight.detach(), transposed)
    assert_close(x, expected, DOUBLE)
    assert (x[-1] == 0).all()
    got = gradients(x, b, weight)
    assert (got - of_published).norm() < 1e-4 * of_published.norm()


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("gradient", [dk.Implicit(), dk.Neumann(steps=20, damping=1.0)], ids=repr)
@pytest.mark.parametrize("max_steps", [1, 3, 7])
def test_a_solve_that_ends_early_has_gradients_of_the_right_size(
    max_steps: int, gradient: dk.Gradient, accelerate: bool
) -> None:
    adjacency, _ = chain()
    b, weight = leaves()
    options: dict[str, Any] = {"activation": "relu", "gradient": gradient, "accelerate": accelerate}
    exact = gradients(solve_graph(b, weight, adjacency, rtol=1e-10, **options), b, weight)
    options["on_solve"] = "ignore"
    early = solve_graph(b, weight, adjacency, max_steps=max_steps, **options)
    assert gradients(early, b, weight).norm() < 10 * exact.norm()


@pytest.mark.parametrize("gradient", [dk.Implicit(), dk.JacobianFree(), dk.Neumann()], ids=repr)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_returned_is_f_of_the_solution(activation: str, gradient: dk.Gradient) -> None:
    """With autograd and without, for graphs and rows."""
    batch = graph_batch()
    for graphs in (True, False):
        seen: list[dk.Solution] = []
        options: dict[str, Any] = {"activation": activation, "max_steps": 3, "gradient": gradient}
        dense = batch.dense if graphs else torch.eye(len(batch.b), dtype=DOUBLE)
        for b in (batch.b, batch.b.clone().requires_grad_()):
            if graphs:
                y = solve_graph(b, batch.weight, batch.adjacency, on_solve=seen.append, **options)
            else:
                y = solve_dense(b, batch.weight, on_solve=seen.append, **options)
            z = seen.pop().z
            assert isinstance(z, Tensor)
            assert_close(y, batch.cell(z, batch.weight, dense, batch.b, activation), DOUBLE)
            assert not torch.equal(y, z)


def test_unrolled_states_begin_at_the_solution_itself() -> None:
    adjacency, transposed = chain()
    b, weight = leaves()
    options: dict[str, Any] = {"activation": "relu", "max_steps": 3, "on_solve": "ignore"}
    upg = dk.Unrolled(steps=1, damping=1.0)
    x = solve_graph(b, weight, adjacency, gradient=upg, **options)
    with torch.no_grad():
        z = solve_graph(b, weight, adjacency, gradient=upg, **options)
    assert_close(x, torch.relu(transposed @ z @ weight.T + b), DOUBLE)
    assert torch.isfinite(gradients(x, b, weight)).all()


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_are_exact_for_small_states_and_so_are_second_ones(
    activation: str, accelerate: bool
) -> None:
    """To the tolerance that each node meets for itself, against autograd through dense steps."""
    adjacency, transposed = chain()
    b, weight = leaves()
    apply = {"relu": torch.relu, "tanh": torch.tanh}[activation]
    options: dict[str, Any] = {"activation": activation, "rtol": 1e-9, "accelerate": accelerate}
    x = solve_graph(b, weight, adjacency, **options)
    z = torch.zeros_like(b)
    for _ in range(80):
        z = apply(transposed @ z @ weight.T + b)
    assert 0 < x.norm(dim=1).min() < 1e-6 * x.norm(dim=1).max()
    assert ((x - z).norm(dim=1) <= 1e-8 * z.norm(dim=1)).all()
    first, second = [], []
    for state in (x, z):
        (g,) = torch.autograd.grad(loss_of(state), weight, create_graph=True)
        first.append(g)
        second.append(torch.autograd.grad(g.square().sum(), weight)[0])
    for got, expected in (first, second):
        assert (got - expected).norm() <= 1e-6 * expected.norm()
