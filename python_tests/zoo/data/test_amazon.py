"""The co-purchasing network's text files, on a tiny one in that format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deq_kernels.cells import propagate
from deq_zoo.data import DatasetError, load_amazon

FILES = {
    "meta.txt": "5 2\n",
    "adj_list.txt": "1 1\n2 0 2\n1 1\n0\n1 3\n",
    "label.txt": "0 1\n1 0\n1 1\n0 0\n0 1\n",
    "train_idx-0.06.txt": "0\n2\n3\n",
    "test_idx-0.06.txt": "1\n4\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_network(folder: Path) -> None:
    splits = load_amazon(folder)
    (graph,) = splits.train
    dense = propagate(torch.eye(5), graph.adjacency).T
    assert dense.nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [4, 3]]
    assert graph.features is None
    assert graph.labels.tolist() == [[0, 1], [1, 0], [1, 1], [0, 0], [0, 1]]
    assert (splits.width, splits.outputs, splits.multilabel) == (5, 2, True)
    counted = [part[0].counted for part in (splits.train, splits.validation, splits.test)]
    assert [int(part.sum()) for part in counted] == [2, 1, 2]
    assert (counted[0] | counted[1]).nonzero().flatten().tolist() == [0, 2, 3]
    assert counted[2].nonzero().flatten().tolist() == [1, 4]


def test_one_file_of_nodes_to_test_on(folder: Path) -> None:
    (folder / "test_idx-0.06.txt").rename(folder / "test_idx.txt")
    assert int(load_amazon(folder).test[0].counted.sum()) == 2
    with pytest.raises(DatasetError, match=r"train_idx-0\.09\.txt is missing"):
        load_amazon(folder, portion="0.09")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("meta.txt", "5\n", "2 numbers per line; got 1"),
        ("meta.txt", "5 0\n", "must hold one line, the numbers of nodes and of labels"),
        ("label.txt", "0 1\n", "5 lines of zeros and ones; got 1"),
        ("label.txt", "0 1\n1 0\n1 1\n0 0\n0 2\n", "5 lines of zeros and ones"),
        ("label.txt", "0\n1\n1\n0\n0\n", "2 numbers per line; got 1"),
        ("label.txt", "", "5 lines of zeros and ones; got 0"),
        ("adj_list.txt", "1 1\n", "a line per node, 5; got 1"),
        ("adj_list.txt", "1 1\n2 0 2\n1 1\n0\n1 5\n", "0 to 4; line 5 has '1 5'"),
        ("adj_list.txt", "1 1\n3 0 2\n1 1\n0\n1 3\n", "line 2 has '3 0 2'"),
        ("adj_list.txt", "1 1\n2 0 x\n1 1\n0\n1 3\n", "whole numbers; line 2"),
        ("adj_list.txt", "1 1\n\n1 1\n0\n1 3\n", "whole numbers; line 2"),
        ("train_idx-0.06.txt", "0\n9\n", "numbers of nodes, 0 to 4"),
        ("train_idx-0.06.txt", "", "numbers of nodes, 0 to 4"),
        ("train_idx-0.06.txt", "0\n1\n", "got 2 with 1 in both"),
        ("train_idx-0.06.txt", "0\n", "got 1 with 0 in both"),
    ],
)
def test_damaged_files(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        load_amazon(folder)


def test_the_fraction_must_be_one(folder: Path) -> None:
    with pytest.raises(ValueError, match="validation_fraction must be between 0 and 1"):
        load_amazon(folder, validation_fraction=1.0)
