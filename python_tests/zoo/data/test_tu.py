"""The TU text format, on a tiny dataset in it: four graphs, one empty and one without edges."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from deq_kernels.cells import propagate
from deq_zoo.data import DatasetError, load_tu, tu_splits

FILES = {
    "A": "1, 2\n2, 1\n5, 4\n4, 6\n",
    "graph_indicator": "1\n1\n3\n4\n4\n4\n",
    "graph_labels": "1\n-1\n-1\n1\n",
    "node_labels": "5\n7\n5\n6\n5\n5\n",
    "node_attributes": "0.5, 1\n1, 2\n2, 3\n-1, 4\n0, 5\n0.25, 6\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / f"TINY_{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_graphs(folder: Path) -> None:
    graphs = load_tu(folder)
    assert [graph.adjacency.nodes for graph in graphs] == [2, 0, 1, 3]
    assert [graph.labels.tolist() for graph in graphs] == [[1], [0], [0], [1]]
    assert [graph.adjacency.symmetric for graph in graphs] == [True, True, True, False]
    assert graphs[0].features.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert graphs[3].features.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0]]
    dense = propagate(torch.eye(3), graphs[3].adjacency).T
    assert dense.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("attributes", [[0.5, 1.0], [1.0, 2.0]]),
        ("both", [[1.0, 0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0, 2.0]]),
        ("degree", [[1.0], [1.0]]),
    ],
)
def test_features(folder: Path, features: str, expected: list[list[float]]) -> None:
    graphs = load_tu(folder, features=features)
    assert graphs[0].features.tolist() == expected
    assert graphs[1].features.shape == (0, len(expected[0]))


def test_unknown_features(folder: Path) -> None:
    with pytest.raises(ValueError, match="features must be one of 'labels'"):
        load_tu(folder, features="colours")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("A", "1, 2\n2, 9\n", "numbers of nodes, 1 to 6; line 2 has 2, 9"),
        ("A", "1, 2\n0, 1\n", "numbers of nodes, 1 to 6; line 2 has 0, 1"),
        ("A", "1, 2\n2, 3\n", "keep edges inside graphs; line 2 joins two"),
        ("A", "1, 2\n2, x\n", "must hold numbers"),
        ("A", "1, 2\n2\n", "must hold numbers"),
        ("A", "1, 2, 3\n", "2 numbers per line; got 3 per line"),
        ("A", "1, 2.5\n", "must hold numbers"),
        ("graph_indicator", "1\n1\n3\n4\n4\n5\n", "numbers of graphs, 1 to 4; got 1 to 5"),
        ("graph_indicator", "1\n4\n3\n4\n4\n4\n", "one after another; line 3 goes back"),
        ("graph_labels", "", "a label per graph; got none"),
        ("graph_labels", "1\n1\n1\n1\n", "must name two classes"),
        ("node_labels", "5\n7\n", "a line per node, 6; got 2"),
        ("node_labels", "5\n7\n5\n6\n5\n99999\n", "at most 10000 labels; got 5 to 99999"),
    ],
)
def test_damaged_files(folder: Path, name: str, text: str, message: str) -> None:
    (folder / f"TINY_{name}.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        load_tu(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5, 1\n", "a line per node, 6; got 1"),
        ("0.5\n" * 5 + "nan\n", "finite numbers; line 6 does not"),
    ],
)
def test_damaged_attributes(folder: Path, text: str, message: str) -> None:
    (folder / "TINY_node_attributes.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        load_tu(folder, features="attributes")


def test_missing_and_foreign_files(folder: Path, tmp_path: Path) -> None:
    (folder / "TINY_graph_labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="is no text file"):
        load_tu(folder)
    (folder / "TINY_graph_labels.txt").unlink()
    with pytest.raises(DatasetError, match=r"graph_labels\.txt is missing"):
        load_tu(folder)
    with pytest.raises(DatasetError, match="is no folder"):
        load_tu(tmp_path / "nowhere")
    (folder / "OTHER_A.txt").write_text("")
    with pytest.raises(DatasetError, match=r"one file DS_A\.txt.*; got OTHER, TINY"):
        load_tu(folder)


@pytest.mark.skipif(find_spec("sklearn") is None, reason="the folds come with scikit-learn")
def test_folds_are_stratified_and_disjoint(folder: Path) -> None:
    graphs = load_tu(folder) * 5
    tested = 0
    for fold in range(4):
        splits = tu_splits(graphs, fold=fold, folds=4)
        parts = [splits.train, splits.validation, splits.test]
        assert [len(part) for part in parts] == [10, 5, 5]
        tested += len(splits.test)
        for part in parts[1:]:
            labels = torch.cat([graph.labels for graph in part])
            assert 2 <= int(labels.sum()) <= 3
        assert (splits.width, splits.outputs, splits.multilabel) == (3, 2, False)
    assert tested == len(graphs)
    with pytest.raises(ValueError, match="a graph per fold, 10; got 2 of one"):
        tu_splits(graphs[:4])
    for options in ({"fold": 4, "folds": 4}, {"folds": 2}, {"fold": -1}):
        with pytest.raises(ValueError, match="folds must be at least 3, and fold from 0"):
            tu_splits(graphs, **options)
