"""Graphs alone and in batches, and from torch_geometric's objects."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.cells import Adjacency, propagate
from deq_zoo.data import Graphs

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


def ring(nodes: int, *, label: int = 0) -> Graphs:
    """A directed ring with random features."""
    source = torch.arange(nodes)
    index = torch.stack([source, (source + 1) % nodes]) if nodes else source.reshape(2, 0)
    return Graphs(
        adjacency=Adjacency.from_coo(index, nodes=nodes),
        features=torch.randn(nodes, 3),
        labels=torch.tensor([label]),
    )


def dense_of(adjacency: Adjacency) -> Tensor:
    return propagate(torch.eye(adjacency.nodes, dtype=adjacency.dtype), adjacency).T


def test_a_batch_is_block_diagonal() -> None:
    graphs = [ring(3), ring(0, label=1), ring(1, label=2), ring(4)]
    joined = Graphs.join(graphs)
    blocks = [dense_of(graph.adjacency) for graph in graphs]
    assert torch.equal(dense_of(joined.adjacency), torch.block_diag(*[b for b in blocks if len(b)]))
    assert joined.adjacency.graph_ptr.tolist() == [0, 3, 3, 4, 8]
    assert joined.labels.tolist() == [0, 1, 2, 0]
    assert torch.equal(joined.features, torch.cat([graph.features for graph in graphs]))
    assert (len(joined), joined.width) == (4, 3)
    assert Graphs.join(graphs[:1]) is graphs[0]


def test_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="got none"):
        Graphs.join([])
    with pytest.raises(ValueError, match="widths"):
        Graphs.join([ring(3), replace(ring(3), features=torch.zeros(3, 4))])
    with pytest.raises(ValueError, match="tell apart the nodes of one graph only"):
        Graphs.join([replace(ring(3), features=None)] * 2)
    with pytest.raises(ValueError, match="all have labels, or none of them; got 1 of 2"):
        Graphs.join([ring(3), replace(ring(3), labels=None)])
    unlabelled = Graphs.join([replace(ring(3), labels=None)] * 2)
    assert unlabelled.labels is None


def test_to_moves_numbers_and_leaves_classes() -> None:
    graph = replace(ring(3), counted=torch.tensor([True, False, True])).to(dtype=torch.float64)
    assert graph.features.dtype == graph.adjacency.dtype == torch.float64
    assert graph.labels.dtype == torch.int64
    assert graph.counted.dtype == torch.bool


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"adjacency": torch.eye(3)}, TypeError, "adjacency must be an Adjacency; got Tensor"),
        ({"features": torch.ones(2, 3)}, ValueError, r"one row per node, \[3, p\]; got \[2, 3\]"),
        ({"features": torch.ones(3)}, ValueError, r"features must be \[N, p\]; got \[3\]"),
        ({"features": [1, 2, 3]}, TypeError, "features must be None or a tensor; got list"),
        ({"labels": torch.ones(2)}, ValueError, "one row per node, 3, or per graph, 1; got"),
        ({"labels": torch.tensor(1)}, ValueError, r"got \[\]"),
        ({"counted": torch.ones(3)}, TypeError, "counted must hold bools; got torch.float32"),
        ({"counted": torch.ones(1).bool()}, ValueError, r"one bool per node, \[3\]; got \[1\]"),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(ring(3), **changes)


def test_a_geometric_data_object() -> None:
    """What torch_geometric's Data has, without the package."""
    x, weight = torch.randn(4, 2).double(), torch.rand(3).double()
    data = SimpleNamespace(
        edge_index=EDGES, x=x, num_nodes=4, edge_weight=weight, y=torch.tensor([[1]]), edge_attr=0
    )
    graph = Graphs.from_geometric(data)
    expected = torch.zeros(4, 4).double()
    expected[EDGES[0], EDGES[1]] = weight
    assert torch.equal(dense_of(graph.adjacency), expected)
    assert graph.features is x
    assert graph.labels.tolist() == [1]
    assert not graph.adjacency.symmetric
    bare = SimpleNamespace(edge_index=torch.cat([EDGES, EDGES.flip(0)], 1), num_nodes=3)
    graph = Graphs.from_geometric(bare)
    assert graph.adjacency.symmetric
    assert (graph.features, graph.labels, graph.width) == (None, None, 3)
    counted_by_x = SimpleNamespace(edge_index=EDGES, x=torch.zeros(5, 1))
    assert Graphs.from_geometric(counted_by_x).adjacency.nodes == 5


def test_a_geometric_batch() -> None:
    batch = SimpleNamespace(
        edge_index=torch.cat([EDGES, EDGES + 3], 1),
        x=torch.randn(6, 2),
        num_nodes=6,
        ptr=torch.tensor([0, 3, 6]),
        y=torch.tensor([0, 1]),
    )
    graphs = Graphs.from_geometric(batch)
    assert len(graphs) == 2
    assert graphs.labels.tolist() == [0, 1]


def test_the_real_geometric_objects() -> None:
    geometric = pytest.importorskip("torch_geometric.data")
    data = [
        geometric.Data(x=torch.randn(3, 2), edge_index=EDGES, y=torch.tensor([k])) for k in (1, 0)
    ]
    one, both = (
        Graphs.from_geometric(data[0]),
        Graphs.from_geometric(geometric.Batch.from_data_list(data)),
    )
    joined = Graphs.join([one, Graphs.from_geometric(data[1])])
    assert torch.equal(dense_of(joined.adjacency), dense_of(both.adjacency))
    assert torch.equal(joined.features, both.features)
    assert torch.equal(joined.labels, both.labels)
    assert torch.equal(joined.adjacency.graph_ptr, both.adjacency.graph_ptr)


def test_what_is_no_geometric_object() -> None:
    with pytest.raises(TypeError, match="must be a torch_geometric Data, or have its attributes"):
        Graphs.from_geometric(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="got neither num_nodes nor x"):
        Graphs.from_geometric(SimpleNamespace(edge_index=EDGES))
