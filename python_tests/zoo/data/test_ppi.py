"""Both sets of files of PPI, on tiny ones in those formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deq_kernels.cells import propagate
from deq_zoo.data import DatasetError, Graphs, load_ppi

FEATURES = np.arange(10, dtype=np.float64).reshape(5, 2)
LABELS = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]])


class Trap:
    """Must never be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def dense_of(graph: Graphs) -> Tensor:
    return propagate(torch.eye(graph.adjacency.nodes), graph.adjacency).T


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def by_graph(tmp_path: Path) -> Path:
    """Nodes 0, 2, 4 are one graph and 1, 3 another; a link twice, a self loop."""
    pairs = [(0, 2), (2, 0), (2, 0), (2, 2), (4, 2), (1, 3)]
    for split in ("train", "valid", "test"):
        links = [{"source": source, "target": target} for source, target in pairs]
        nodes = [{"id": node} for node in range(5)]
        graph = {"directed": True, "multigraph": False, "nodes": nodes, "links": links}
        write_json(tmp_path / f"{split}_graph.json", graph)
        np.save(tmp_path / f"{split}_feats.npy", FEATURES)
        np.save(tmp_path / f"{split}_labels.npy", LABELS)
        np.save(tmp_path / f"{split}_graph_id.npy", np.array([3, 7, 3, 7, 3]))
    return tmp_path


@pytest.fixture
def in_one(tmp_path: Path) -> Path:
    scipy = pytest.importorskip("scipy.sparse")
    full = np.zeros((5, 5), np.float32)
    full[[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]] = 1
    full[2, 2] = 1
    train = np.zeros_like(full)
    train[[0, 1], [1, 0]] = 0.5
    for name, matrix in (("adj_full", full), ("adj_train", train)):
        scipy.save_npz(tmp_path / f"{name}.npz", scipy.csr_matrix(matrix))
    np.save(tmp_path / "feats.npy", FEATURES)
    write_json(tmp_path / "role.json", {"tr": [0, 1], "va": [2], "te": [3, 4]})
    write_json(tmp_path / "class_map.json", {str(i): row.tolist() for i, row in enumerate(LABELS)})
    return tmp_path


def test_graph_by_graph(by_graph: Path) -> None:
    splits = load_ppi(by_graph)
    assert (splits.width, splits.outputs, splits.multilabel) == (2, 3, True)
    for part in (splits.train, splits.validation, splits.test):
        one, other = part
        assert dense_of(one).tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
        assert dense_of(other).tolist() == [[0, 1], [0, 0]]
        assert one.features.tolist() == FEATURES[[0, 2, 4]].tolist()
        assert other.labels.tolist() == LABELS[[1, 3]].tolist()
        assert one.features.dtype == one.labels.dtype == torch.float32


def test_links_without_a_direction_go_both_ways(by_graph: Path) -> None:
    path = by_graph / "train_graph.json"
    graph = json.loads(path.read_text())
    del graph["directed"]
    write_json(path, graph)
    one, other = load_ppi(by_graph).train
    assert dense_of(one).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert one.adjacency.symmetric
    assert other.adjacency.symmetric


def test_in_one_graph(in_one: Path) -> None:
    splits = load_ppi(in_one)
    (train,), (validation,), (test,) = splits.train, splits.validation, splits.test
    assert dense_of(train).nonzero().tolist() == [[0, 1], [1, 0]]
    assert dense_of(train).max() == 1.0
    places = [[0, 1], [1, 0], [1, 2], [2, 1], [3, 4], [4, 3]]
    for graph in (validation, test):
        assert dense_of(graph).nonzero().tolist() == places
    counted = [graph.counted.nonzero().flatten().tolist() for graph in (train, validation, test)]
    assert counted == [[0, 1], [2], [3, 4]]
    assert train.labels.tolist() == LABELS.tolist()
    assert (splits.width, splits.outputs) == (2, 3)


def save_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, FEATURES)


BY_GRAPH: list[tuple[str, Callable[[Path], object], str]] = [
    ("train_graph.json", lambda path: path.write_text("{"), "is no JSON"),
    ("train_graph.json", lambda path: write_json(path, {"nodes": []}), "must hold 'links'"),
    ("train_graph.json", lambda path: write_json(path, []), "must hold 'links'"),
    (
        "train_graph.json",
        lambda path: write_json(path, {"links": [{"source": 0, "target": 5}]}),
        "numbers of nodes, 0 to 4; got 0 to 5",
    ),
    (
        "train_graph.json",
        lambda path: write_json(path, {"links": [{"source": 0, "target": 0.5}]}),
        "whole numbers as",
    ),
    (
        "train_graph.json",
        lambda path: write_json(path, {"links": [{"source": 0, "target": 1}]}),
        "must keep links inside the graphs",
    ),
    ("valid_feats.npy", lambda path: path.write_bytes(b"nonsense"), "none of NumPy's formats"),
    ("valid_feats.npy", lambda path: path.unlink(), "valid_feats.npy is missing"),
    (
        "valid_feats.npy",
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        "none of NumPy's formats",
    ),
    ("valid_feats.npy", lambda path: np.save(path, FEATURES[:, 0]), r"numbers \[rows, columns\]"),
    ("valid_feats.npy", lambda path: np.save(path, FEATURES * np.nan), "finite numbers"),
    ("valid_feats.npy", lambda path: np.save(path, FEATURES[:, :1]), "as many features and labels"),
    ("valid_feats.npy", save_archive, "archive of several"),
    (
        "valid_feats.npy",
        lambda path: np.save(path, np.array([Trap()], dtype=object), allow_pickle=True),
        "none of NumPy's formats",
    ),
    ("test_labels.npy", lambda path: np.save(path, LABELS + 0.5), "zeros and ones"),
    ("test_labels.npy", lambda path: np.save(path, LABELS[:4]), "a row of test_feats.npy"),
    ("test_graph_id.npy", lambda path: np.save(path, np.ones(5)), "a whole number of test_graph_"),
]


@pytest.mark.parametrize(("name", "damage", "message"), BY_GRAPH)
def test_damaged_graphs(
    by_graph: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(by_graph / name)
    with pytest.raises(DatasetError, match=message):
        load_ppi(by_graph)


def matrix(**changes: Any) -> Callable[[Path], object]:
    """Save an empty 5 x 5 matrix in compressed rows, with changes."""
    parts = {
        "data": np.zeros(0),
        "indices": np.zeros(0, np.int32),
        "indptr": np.zeros(6, np.int32),
        "shape": np.array([5, 5]),
    } | changes
    return lambda path: np.savez(
        path, **{name: part for name, part in parts.items() if part is not None}
    )


IN_ONE: list[tuple[str, Callable[[Path], object], str]] = [
    ("role.json", lambda path: write_json(path, {"tr": [0], "va": [1]}), "'te' is no such list"),
    ("role.json", lambda path: write_json(path, {"tr": [9]}), "'tr' is no such list"),
    ("role.json", lambda path: write_json(path, [1]), "'tr' is no such list"),
    ("class_map.json", lambda path: write_json(path, {"0": [1]}), "a list of 5 nodes' labels"),
    ("class_map.json", lambda path: write_json(path, dict.fromkeys("01234", 1)), "for each node"),
    (
        "class_map.json",
        lambda path: write_json(path, {key: [2] for key in "01234"}),
        "zeros and ones",
    ),
    ("adj_full.npz", lambda path: path.write_bytes(b"PK\x03\x04 nonsense"), "formats"),
    ("adj_full.npz", lambda path: path.write_bytes(b""), "formats"),
    ("adj_full.npz", lambda path: path.unlink(), "adj_full.npz is missing"),
    ("adj_full.npz", matrix(indptr=None), "it lacks indptr"),
    ("adj_full.npz", matrix(shape=np.array([4, 5])), "a matrix of 5 rows and columns"),
    ("adj_full.npz", matrix(indptr=np.array([0, 1, 0, 0, 0, 0])), "a matrix of 5 rows"),
    ("adj_full.npz", matrix(indptr=np.array([0, 0, 0, 0, 0, 3])), "a matrix of 5 rows"),
    (
        "adj_full.npz",
        matrix(indptr=np.array([0, 0, 0, 0, 0, 1]), indices=np.array([5])),
        "numbers of nodes, 0 to 4; got 4 to 5",
    ),
    (
        "adj_full.npz",
        matrix(indptr=np.array([Trap()] * 6, dtype=object)),
        "none of NumPy's formats",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), IN_ONE)
def test_damaged_whole(
    in_one: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(in_one / name)
    with pytest.raises(DatasetError, match=message):
        load_ppi(in_one)
