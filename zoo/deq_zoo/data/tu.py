"""Graph classification datasets in the TU text format, such as COX2 and PROTEINS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deq_kernels.cells import Adjacency
from deq_kernels.models.ignn import Graphs
from deq_kernels.options import check_choice, check_count
from deq_zoo.data.errors import DatasetError
from deq_zoo.data.graph_splits import GraphSplits
from deq_zoo.data.text import read_counts, read_table

FEATURES = ("labels", "attributes", "both", "degree")
MOST_NODE_LABELS = 10_000
"""A one-hot feature each; a file that spans more is taken for damaged."""
SMALL, GROWTH = 2**26, 128
"""Features may take so many bytes, and further ones for each byte of the files."""


def load_tu(folder: Path | str, *, features: str = "labels") -> tuple[Graphs, ...]:
    """All graphs of a folder of DS_A.txt, DS_graph_indicator.txt, DS_graph_labels.txt and so on.

    DS is the dataset's name, nodes and graphs are counted from 1. DS_A.txt has an edge "i, j" per
    line, DS_graph_indicator.txt the graph of each node, DS_graph_labels.txt the class of each
    graph, DS_node_labels.txt and DS_node_attributes.txt what is known of each node (Morris et al.
    2020, "TUDataset: a collection of benchmark datasets for learning with graphs"). Edge labels and
    edge attributes have no place in A and are not read.

    Args:
        folder: where the files are.
        features: what nodes are described by: "labels", one-hot over the range from the smallest
            to the largest label (COX2 has 35 so, and PROTEINS 3, as published); "attributes",
            numbers as they are; "both", one beside the other; "degree", the number of edges that
            lead to a node, for datasets without either.

    Returns:
        One `Graphs` per graph, float32, with labels [1] int64: the classes in ascending order of
        their names in the file, from 0. Weights are 1; an edge that is given twice counts twice.

    Raises:
        DatasetError: a file is missing, damaged, or contradicts another one.
        ValueError: there are no such features.
    """
    check_choice("features", features, FEATURES)
    folder = Path(folder)
    name = _name(folder)
    graph_of_node = read_counts(folder / f"{name}_graph_indicator.txt") - 1
    labels = read_counts(folder / f"{name}_graph_labels.txt")
    edges = read_table(folder / f"{name}_A.txt", np.int64, columns=2) - 1
    nodes, graphs = len(graph_of_node), len(labels)
    where = f"{folder / name}_graph_indicator.txt"
    if not graphs:
        raise DatasetError(
            f"{folder / name}_graph_labels.txt must hold a label per graph; got none"
        )
    if graphs > nodes:
        raise DatasetError(
            f"{folder / name}_graph_labels.txt must have at most a label per node, {nodes}, as few "
            f"graphs have none; got {graphs}"
        )
    if nodes and (graph_of_node.min() < 0 or graph_of_node.max() >= graphs):
        raise DatasetError(
            f"{where} must hold numbers of graphs, 1 to {graphs}; got {graph_of_node.min() + 1} to "
            f"{graph_of_node.max() + 1}"
        )
    if (np.diff(graph_of_node) < 0).any():
        node = int(np.flatnonzero(np.diff(graph_of_node) < 0)[0]) + 2
        raise DatasetError(f"{where} must list graphs one after another; line {node} goes back")
    _check_edges(folder / f"{name}_A.txt", edges, graph_of_node)
    x = _features(folder, name, features, edges, nodes)
    classes, class_of_graph = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DatasetError(f"{folder / name}_graph_labels.txt must name two classes; got {classes}")
    return _split(edges, graph_of_node, x, torch.from_numpy(class_of_graph.reshape(-1)))


def tu_splits(
    graphs: tuple[Graphs, ...], *, fold: int = 0, folds: int = 10, seed: int = 42
) -> GraphSplits:
    """One of the folds of a stratified cross-validation: reported on; the next one is chosen by.

    Args:
        graphs: of `load_tu`.
        fold: from 0.
        folds: at least 3; all others are trained on.
        seed: shuffles the graphs.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a number is out of its range, or a class has fewer graphs than there are folds.
    """
    check_count("folds", folds)
    if folds < 3 or not isinstance(fold, int) or not 0 <= fold < folds:
        raise ValueError(
            f"folds must be at least 3, and fold from 0 to folds - 1; got {folds} and {fold}."
        )
    from sklearn.model_selection import StratifiedKFold

    labels = torch.cat([_labels_of(graph) for graph in graphs]).numpy()
    fewest = int(np.bincount(labels).min())
    if fewest < folds:
        raise ValueError(
            f"Every class must have a graph per fold, {folds}; got {fewest} of one. Take "
            "fewer folds."
        )
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    held_out = [part.tolist() for _, part in splitter.split(labels[:, None], labels)]
    test, validation = held_out[fold], held_out[(fold + 1) % folds]
    rest = sorted(set(range(len(graphs))) - set(test) - set(validation))
    train, chosen_by, reported = (
        tuple(graphs[index] for index in part) for part in (rest, validation, test)
    )
    return GraphSplits(
        train=train, validation=chosen_by, test=reported, outputs=int(labels.max()) + 1
    )


def _labels_of(graph: Graphs) -> Tensor:
    assert graph.labels is not None
    return graph.labels


def _name(folder: Path) -> str:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; unpack the dataset there")
    found = sorted(path.name[: -len("_A.txt")] for path in folder.glob("*_A.txt"))
    if len(found) != 1:
        raise DatasetError(
            f"{folder} must hold one file DS_A.txt, DS being the dataset's name; got "
            f"{', '.join(found) or 'none'}"
        )
    return found[0]


def _check_edges(path: Path, edges: NDArray[np.int64], graph_of_node: NDArray[np.int64]) -> None:
    nodes = len(graph_of_node)
    wrong = ((edges < 0) | (edges >= nodes)).any(axis=1)
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0])
        raise DatasetError(
            f"{path} must hold numbers of nodes, 1 to {nodes}; line {line + 1} has "
            f"{edges[line, 0] + 1}, {edges[line, 1] + 1}"
        )
    between = graph_of_node[edges[:, 0]] != graph_of_node[edges[:, 1]]
    if between.any():
        line = int(np.flatnonzero(between)[0])
        raise DatasetError(f"{path} must keep edges inside graphs; line {line + 1} joins two")


def _features(
    folder: Path, name: str, features: str, edges: NDArray[np.int64], nodes: int
) -> Tensor:
    """[nodes, p] float32."""
    if features == "degree":
        degree = np.bincount(edges[:, 1], minlength=nodes)
        return torch.from_numpy(degree).float()[:, None]
    parts = []
    if features in ("labels", "both"):
        parts.append(_one_hot(folder / f"{name}_node_labels.txt", nodes))
    if features in ("attributes", "both"):
        path = folder / f"{name}_node_attributes.txt"
        table = read_table(path, np.float32)
        _check_lines(path, len(table), nodes)
        parts.append(torch.from_numpy(table))
    return torch.cat(parts, 1)


def _one_hot(path: Path, nodes: int) -> Tensor:
    labels = read_counts(path)
    _check_lines(path, len(labels), nodes)
    if not nodes:
        raise DatasetError(f"{path} must hold a label per node; got no nodes")
    smallest, span = int(labels.min()), int(labels.max()) - int(labels.min()) + 1
    if span > MOST_NODE_LABELS:
        raise DatasetError(
            f"{path} must span at most {MOST_NODE_LABELS} labels; got {smallest} to "
            f"{int(labels.max())}"
        )
    name = path.name.removesuffix("_node_labels.txt")
    text = sum(file.stat().st_size for file in path.parent.glob(f"{name}_*.txt"))
    most = SMALL + GROWTH * text
    if 4 * nodes * span > most:
        raise DatasetError(
            f"{path} must span fewer labels: {span} for {nodes} nodes take {4 * nodes * span:,} "
            f"bytes, where files of {text:,} bytes should need no more than {most:,}"
        )
    features = torch.zeros(nodes, span)
    features[torch.arange(nodes), torch.from_numpy(labels - smallest)] = 1.0
    return features


def _check_lines(path: Path, lines: int, nodes: int) -> None:
    if lines != nodes:
        raise DatasetError(f"{path} must have a line per node, {nodes}; got {lines}")


def _split(
    edges: NDArray[np.int64], graph_of_node: NDArray[np.int64], x: Tensor, labels: Tensor
) -> tuple[Graphs, ...]:
    graphs = len(labels)
    ends = np.cumsum(np.bincount(graph_of_node, minlength=graphs))
    graph_of_edge = graph_of_node[edges[:, 0]]
    by_graph = torch.from_numpy(edges[np.argsort(graph_of_edge, kind="stable")].T.copy())
    sizes = np.bincount(graph_of_edge, minlength=graphs).tolist()
    found = []
    start = 0
    for graph, (end, own) in enumerate(zip(ends.tolist(), by_graph.split(sizes, 1), strict=True)):
        adjacency = Adjacency.from_coo(
            own - start, torch.ones(own.shape[1]), nodes=end - start, symmetric=None
        )
        found.append(
            Graphs(adjacency=adjacency, features=x[start:end], labels=labels[graph : graph + 1])
        )
        start = end
    return tuple(found)
