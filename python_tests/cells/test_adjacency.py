"""Adjacencies: the same matrix from every source, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.cells import Adjacency
from python_tests.cells.batches import edges_of, graph_batch

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")

EDGES = torch.tensor([[0, 1, 1, 2], [1, 0, 1, 2]])


def dense_of(adjacency: Adjacency) -> Tensor:
    """A, from the rows of Aᵀ."""
    rows = adjacency.pattern.rows
    dense = torch.zeros(adjacency.nodes, adjacency.nodes, dtype=adjacency.dtype)
    return dense.index_put((rows.col, rows.row), adjacency.row_values(), accumulate=True)


def dense_of_columns(adjacency: Adjacency) -> Tensor:
    """A, from its own rows."""
    rows = adjacency.pattern.columns
    values = adjacency.pattern.transpose(adjacency.row_values())
    dense = torch.zeros(adjacency.nodes, adjacency.nodes, dtype=adjacency.dtype)
    return dense.index_put((rows.row, rows.col), values, accumulate=True)


def assert_is(adjacency: Adjacency, dense: Tensor) -> None:
    assert torch.equal(dense_of(adjacency), dense)
    assert torch.equal(dense_of_columns(adjacency), dense)
    pattern, nodes = adjacency.pattern, adjacency.nodes
    for side in (pattern.rows, pattern.columns):
        owners = torch.repeat_interleave(torch.arange(nodes), side.crow.diff())
        assert torch.equal(side.row, owners)
    back = pattern.transposed.transpose(pattern.transpose(adjacency.row_values()))
    assert torch.equal(back, adjacency.row_values())


@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_matrix_that_was_given(symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric)
    assert_is(batch.adjacency, batch.dense)
    assert batch.adjacency.symmetric is symmetric
    shared = batch.adjacency.pattern.rows is batch.adjacency.pattern.columns
    assert shared is symmetric
    assert batch.adjacency.graph_ptr.tolist() == [0, 4, 4, 5, 8, 14]


def test_csr_and_coo_agree() -> None:
    batch = graph_batch()
    csr = batch.dense.to_sparse_csr()
    assert_is(Adjacency.from_csr(csr, graph_ptr=batch.adjacency.graph_ptr), batch.dense)


def test_entries_at_one_place_add_up_and_keep_their_own_gradients() -> None:
    index = torch.tensor([[0, 0, 1], [1, 1, 0]])
    values = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    adjacency = Adjacency.from_coo(index, values, nodes=2)
    dense = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    assert_is(adjacency, dense)
    dense_of(adjacency)[0, 1].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 0.0]


def test_values_default_to_ones_and_indices_may_be_int32() -> None:
    adjacency = Adjacency.from_coo(EDGES.int(), nodes=4)
    assert adjacency.dtype == torch.get_default_dtype()
    assert dense_of(adjacency).sum() == 4
    assert adjacency.graph_ptr.tolist() == [0, 4]


@pytest.mark.parametrize("kinds", [(False, False), (True, True), (True, False), (False, True)])
def test_many_graphs_into_one(kinds: tuple[bool, bool]) -> None:
    batches = [graph_batch(symmetric=kind) for kind in kinds]
    parts = [batch.adjacency for batch in batches]
    joined = Adjacency.from_graphs(parts)
    assert_is(joined, torch.block_diag(*[batch.dense for batch in batches]))
    assert joined.symmetric is all(kinds)
    assert joined.graph_ptr.tolist() == [0, 4, 4, 5, 8, 14, 18, 18, 19, 22, 28]
    assert torch.equal(joined.values, torch.cat([part.values for part in parts]))


def test_a_batch_hands_gradients_to_each_graph() -> None:
    values = [torch.rand(4, requires_grad=True) for _ in range(2)]
    joined = Adjacency.from_graphs([Adjacency.from_coo(EDGES, v, nodes=3) for v in values])
    weights = torch.randn(6, 6)
    (dense_of(joined) * weights).sum().backward()
    for number, v in enumerate(values):
        assert torch.equal(v.grad, weights[3 * number :, 3 * number :][EDGES[0], EDGES[1]])


def test_nothing_at_all() -> None:
    index = torch.zeros(2, 0, dtype=torch.int64)
    empty = Adjacency.from_coo(index, nodes=0)
    assert (empty.nodes, empty.graph_ptr.tolist()) == (0, [0, 0])
    no_graphs = Adjacency.from_coo(index, nodes=0, graph_ptr=torch.tensor([0]))
    assert len(no_graphs.pattern.graphs) == 0
    assert Adjacency.from_graphs([empty, no_graphs]).graph_ptr.tolist() == [0, 0]


def test_other_values_on_the_same_places() -> None:
    batch = graph_batch()
    other = batch.adjacency.with_values(2.0 * batch.adjacency.values)
    assert_is(other, 2.0 * batch.dense)


@pytest.mark.parametrize("symmetric", [False, True])
def test_to_changes_dtype_and_device(symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric)
    moved = batch.adjacency.to("cpu", torch.float32)
    assert moved.dtype == torch.float32
    assert moved.symmetric is symmetric
    assert_is(moved, batch.dense.float())
    meta = batch.adjacency.to("meta")
    tensors = (meta.values, meta.graph_ptr, meta.row_values(), meta.pattern.columns.col)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert "nodes=14" in repr(meta)


def test_to_is_differentiable() -> None:
    values = torch.rand(4, requires_grad=True)
    moved = Adjacency.from_coo(EDGES, values, nodes=3).to(dtype=torch.float64)
    moved.values.sum().backward()
    assert torch.equal(values.grad, torch.ones(4))


def test_rounding_does_not_break_symmetry() -> None:
    values = torch.tensor([1.0, 1.0 + 1e-7, 3.0, 4.0])
    assert Adjacency.from_coo(EDGES, values, nodes=3, symmetric=True).symmetric


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": EDGES.float()}, "index must be an int64 or int32"),
        ({"index": EDGES.tolist()}, "index must be an int64 or int32"),
        ({"values": [1.0]}, "values must be a tensor"),
        ({"values": torch.ones(4, dtype=torch.int64)}, "A state must be one of"),
        ({"values": torch.ones(4, device="meta")}, "values must be on the device of index"),
        ({"graph_ptr": [0, 3]}, "graph_ptr must be an int64 or int32"),
        ({"graph_ptr": torch.tensor([0, 3], device="meta")}, "graph_ptr must be on cpu"),
    ],
)
def test_wrong_kinds_are_type_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"index": EDGES, "nodes": 3, **change}
    with pytest.raises(TypeError, match=message):
        Adjacency.from_coo(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": EDGES.T}, r"index must be \[2, nnz\].*got \[4, 2\]"),
        ({"values": torch.ones(3)}, r"one number per entry, \[4\]; got \[3\]"),
        ({"nodes": 2}, "numbers of nodes, 0 to 1; got 0 to 2"),
        ({"index": EDGES - 1}, "numbers of nodes, 0 to 2; got -1 to 1"),
        ({"nodes": -1}, "nodes must be a whole number"),
        ({"nodes": True}, "nodes must be a whole number"),
        ({"nodes": 3.0}, "nodes must be a whole number"),
        ({"graph_ptr": torch.tensor([0, 2])}, "rise from 0 to the number of nodes, 3"),
        ({"graph_ptr": torch.tensor([1, 3])}, "rise from 0"),
        ({"graph_ptr": torch.tensor([0, 3, 2, 3])}, "rise from 0"),
        ({"graph_ptr": torch.tensor([[0, 3]])}, r"graph_ptr must be \[G \+ 1\]"),
        ({"graph_ptr": torch.zeros(0, dtype=torch.int64)}, r"graph_ptr must be \[G \+ 1\]"),
        (
            {"graph_ptr": torch.tensor([0, 1, 3])},
            "entry 0 from node 0 of graph 0 to node 1 of graph 1",
        ),
        ({"symmetric": 1}, "symmetric must be a bool"),
        ({"symmetric": True, "values": torch.tensor([1.0, 2.0, 3.0, 4.0])}, "needs A"),
        ({"symmetric": True, "index": torch.tensor([[0, 1, 1, 2], [1, 2, 1, 2]])}, "needs A"),
        (
            {"symmetric": True, "values": torch.ones(4, requires_grad=True)},
            "require no gradient",
        ),
    ],
)
def test_wrong_contents_are_value_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"index": EDGES, "nodes": 3, **change}
    with pytest.raises(ValueError, match=message):
        Adjacency.from_coo(**arguments)


def test_what_is_no_square_csr_matrix_is_refused() -> None:
    with pytest.raises(TypeError, match=r"layout torch.sparse_csr; got torch.strided"):
        Adjacency.from_csr(torch.eye(2))
    with pytest.raises(TypeError, match="got list"):
        Adjacency.from_csr([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"square, \[N, N\]; got \[1, 2\]"):
        Adjacency.from_csr(torch.ones(1, 2).to_sparse_csr())
    with pytest.raises(ValueError, match="must not require a gradient"):
        Adjacency.from_csr(torch.eye(2).to_sparse_csr().requires_grad_())


def test_what_cannot_be_joined_is_refused() -> None:
    one = Adjacency.from_coo(EDGES, nodes=3)
    with pytest.raises(ValueError, match="at least one"):
        Adjacency.from_graphs([])
    with pytest.raises(TypeError, match="got Tensor"):
        Adjacency.from_graphs([one, torch.eye(2)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"torch.float32 on cpu, and torch.float64 on cpu"):
        Adjacency.from_graphs([one, one.to(dtype=torch.float64)])


def test_other_values_must_fit() -> None:
    one = Adjacency.from_coo(EDGES, nodes=3)
    with pytest.raises(ValueError, match=r"\[4\]; got \[5\]"):
        one.with_values(torch.ones(5))
    symmetric = Adjacency.from_coo(EDGES, nodes=3, symmetric=True)
    with pytest.raises(ValueError, match="symmetric=True"):
        symmetric.with_values(torch.ones(4))
    with pytest.raises(TypeError, match="A state must be one of"):
        one.to(dtype=torch.int64)


def test_scrambled_edges_come_back_in_order() -> None:
    dense = torch.rand(5, 5)
    index, values = edges_of(dense)
    adjacency = Adjacency.from_coo(index, values, nodes=5)
    assert torch.equal(adjacency.values, values)
    assert torch.equal(adjacency.row_values(), dense.T.flatten())
