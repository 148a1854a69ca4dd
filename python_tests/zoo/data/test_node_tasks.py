"""The node classification tasks that need no files: chains and the karate club."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deq_kernels.cells import propagate
from deq_zoo.data import GraphSplits, generate_chains, load_karate


def parts_of(splits: GraphSplits) -> list[torch.Tensor]:
    found = []
    for part in (splits.train, splits.validation, splits.test):
        (graph,) = part
        found.append(graph.counted)
    return found


def test_chains_of_the_paper() -> None:
    splits = generate_chains()
    (graph,) = splits.train
    assert [int(part.sum()) for part in parts_of(splits)] == [20, 100, 200]
    assert int(sum(part.long() for part in parts_of(splits)).max()) == 1  # disjoint
    assert (splits.width, splits.outputs, splits.multilabel) == (100, 2, False)
    assert len(graph) == 40
    assert graph.adjacency.graph_ptr.diff().tolist() == [10] * 40
    # A message at a chain's start walks to its end, and not back.
    message = torch.zeros(400, 1)
    message[0] = 1.0
    for node in range(10):
        assert message.flatten().nonzero().tolist() == [[node]]
        message = propagate(message, graph.adjacency)
    assert not message.any()
    shown = graph.features.nonzero()
    assert shown[:, 0].tolist() == list(range(0, 400, 10))
    assert shown[:, 1].tolist() == [0] * 20 + [1] * 20
    assert graph.labels.tolist() == [0] * 200 + [1] * 200


def test_the_seed_decides_the_chains() -> None:
    one, again, other = (generate_chains(seed=seed, noise=0.1) for seed in (3, 3, 4))
    assert torch.equal(one.train[0].features, again.train[0].features)
    assert torch.equal(one.train[0].counted, again.train[0].counted)
    assert not torch.equal(one.train[0].features, other.train[0].features)
    assert not torch.equal(one.train[0].counted, other.train[0].counted)
    features = one.train[0].features
    features[features > 0.5] -= 1.0
    assert 0.09 < float(features.abs().max()) <= 0.1


def test_chains_of_one_node_have_no_edges() -> None:
    splits = generate_chains(length=1, chains=3, classes=3, train=2, validation=2, test=5)
    assert len(splits.train[0].adjacency.values) == 0
    assert int(sum(part.sum() for part in parts_of(splits))) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes must be at least 2; got 1"),
        ({"features": 1}, "features must be at least as many as classes, 2; got 1"),
        ({"length": 0}, "length must be a whole number, at least 1; got 0"),
        ({"noise": -1.0}, "noise must be finite and at least 0; got -1.0"),
        ({"test": 281}, "at most 400 nodes together; got 20 \\+ 100 \\+ 281"),
    ],
)
def test_chains_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_chains(**options)


def test_karate() -> None:
    splits = load_karate()
    (graph,) = splits.train
    adjacency = graph.adjacency
    assert adjacency.symmetric
    degree = propagate(torch.ones(34, 1), adjacency).flatten()
    assert int(degree.sum()) == 2 * 78
    assert degree[[0, 32, 33, 11]].tolist() == [16, 12, 17, 1]
    assert graph.labels.bincount().tolist() == [17, 17]
    assert (splits.width, splits.outputs) == (34, 2)
    train, validation, test = parts_of(splits)
    assert train.nonzero().flatten().tolist() == [0, 33]
    assert (int(validation.sum()), int(test.sum())) == (8, 24)
    assert bool((train ^ validation ^ test).all())
    assert not torch.equal(parts_of(load_karate(seed=1))[1], validation)


def test_karate_is_what_networkx_has() -> None:
    networkx = pytest.importorskip("networkx")
    club = networkx.karate_club_graph()
    (graph,) = load_karate().train
    rows = graph.adjacency.pattern.rows
    ours = set(zip(rows.row.tolist(), rows.col.tolist(), strict=True))
    assert ours == set(club.edges) | {(j, i) for i, j in club.edges}
    sides = [int(club.nodes[member]["club"] != "Mr. Hi") for member in range(34)]
    assert graph.labels.tolist() == sides
