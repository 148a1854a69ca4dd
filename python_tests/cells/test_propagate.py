"""One product with A, and the normalised A, against dense algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from deq_kernels.cells import Adjacency, normalized, propagate
from python_tests.cells.batches import DOUBLE, graph_batch
from python_tests.tolerances import assert_close

EDGES = torch.tensor([[0, 1, 0], [1, 2, 1]])


def dense_of(adjacency: Adjacency) -> Tensor:
    """A, from products with it."""
    return propagate(torch.eye(adjacency.nodes, dtype=adjacency.dtype), adjacency).T


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_the_product_is_that_of_the_dense_matrix(dtype: torch.dtype, symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric, features=5)
    x = batch.b.to(dtype)
    actual = propagate(x, batch.adjacency.to(dtype=dtype))
    assert_close(actual, batch.dense.to(dtype).double().T @ x.double(), dtype)


def test_the_product_is_differentiable() -> None:
    batch = graph_batch(features=2)
    values = batch.adjacency.values.clone().requires_grad_()

    def product(x: Tensor, values: Tensor) -> Tensor:
        return propagate(x, batch.adjacency.with_values(values))

    leaves = (batch.b.clone().requires_grad_(), values)
    assert gradcheck(product, leaves)
    assert gradgradcheck(product, leaves)


def test_no_edges_and_no_nodes() -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    for nodes in (0, 3):
        adjacency = Adjacency.from_coo(none, nodes=nodes)
        assert propagate(torch.ones(nodes, 2), adjacency).equal(torch.zeros(nodes, 2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_normalized_is_the_formula(symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric)
    actual = normalized(batch.adjacency)
    eye = torch.eye(len(batch.dense), dtype=DOUBLE)
    root = (batch.dense.sum(1) + 1.0).rsqrt().diag()
    assert_close(dense_of(actual), root @ (batch.dense + eye) @ root, DOUBLE)
    assert actual.symmetric is symmetric
    assert actual.graph_ptr.equal(batch.adjacency.graph_ptr)
    radius = torch.linalg.eigvals(dense_of(actual)).abs().max()
    assert float(radius) == pytest.approx(1.0, abs=1e-7)


def test_normalized_hands_gradients_to_the_values() -> None:
    batch = graph_batch(sizes=(3, 1))
    values = batch.adjacency.values.clone().requires_grad_()
    x = batch.b

    def product(values: Tensor) -> Tensor:
        return propagate(x, normalized(batch.adjacency.with_values(values)))

    assert gradcheck(product, values)


def test_symmetry_is_looked_up() -> None:
    for symmetric in (False, True):
        batch = graph_batch(symmetric=symmetric)
        rows = batch.adjacency.pattern.rows
        index, values = torch.stack([rows.col, rows.row]), batch.adjacency.row_values()
        nodes = batch.adjacency.nodes
        found = Adjacency.from_coo(index, values, nodes=nodes, symmetric=None)
        assert found.symmetric is symmetric
        values = values.clone().requires_grad_()
        found = Adjacency.from_coo(index, values, nodes=nodes, symmetric=None)
        assert not found.symmetric


def test_errors() -> None:
    adjacency = Adjacency.from_coo(EDGES, nodes=3)
    with pytest.raises(TypeError, match="adjacency must be an Adjacency; got Tensor"):
        propagate(torch.ones(3, 2), torch.eye(3))
    with pytest.raises(TypeError, match="x must be a tensor"):
        propagate([[1.0]] * 3, adjacency)
    for shape in ((2, 3), (3,)):
        with pytest.raises(ValueError, match=r"one row per node of the adjacency, \[3, n\]; got"):
            propagate(torch.ones(shape), adjacency)
    with pytest.raises(TypeError, match="must have the dtype and device of the adjacency"):
        propagate(torch.ones(3, 2).double(), adjacency)
    with pytest.raises(TypeError, match="adjacency must be an Adjacency; got Tensor"):
        normalized(torch.eye(3))
    negative = Adjacency.from_coo(EDGES, torch.tensor([1.0, -1.0, 1.0]), nodes=3)
    with pytest.raises(ValueError, match=r"more than -1.*; got a sum of -1"):
        normalized(negative)
    both = torch.cat([EDGES, EDGES.flip(0)], 1)
    symmetric = Adjacency.from_coo(both, nodes=3, symmetric=True)
    symmetric.values.requires_grad_()
    for refused in (lambda: propagate(torch.ones(3, 1), symmetric), lambda: normalized(symmetric)):
        with pytest.raises(ValueError, match="symmetric adjacency must have values that require"):
            refused()
