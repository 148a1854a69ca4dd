"""Protein interactions in human tissues (PPI): 121 labels per protein, 24 graphs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deq_kernels.cells import Adjacency
from deq_kernels.models.ignn import Graphs
from deq_zoo.data.errors import DatasetError
from deq_zoo.data.graph_splits import GraphSplits
from deq_zoo.data.text import read_text
from deq_zoo.json_text import parse_json

SPLITS = ("train", "valid", "test")
COMPRESSED_ROWS = ("indptr", "indices", "shape")
"""Arrays of a matrix as SciPy saves it, without its values."""
SMALL, GROWTH = 2**26, 200
"""Arrays of an archive may take so many bytes, and further ones for each byte of the file."""


def load_ppi(folder: Path | str) -> GraphSplits:
    """PPI from either of the two sets of files that it is handed around in.

    - Graph by graph, as IGNN trains on it (DGL, torch_geometric): for each of train, valid and
      test a SPLIT_graph.json of nodes and links, SPLIT_feats.npy [N, p], SPLIT_labels.npy [N, C]
      and SPLIT_graph_id.npy [N], the graph of each node.
    - In one graph (GraphSAINT): adj_full.npz and adj_train.npz, matrices in compressed rows as
      SciPy saves them, feats.npy, role.json with the nodes of "tr", "va" and "te", and
      class_map.json with the labels of each node. Training sees adj_train only, the others all.

    A is binary: weights are dropped, edges given twice count once, and self loops are left out, as
    published. Nothing is unpickled.

    Args:
        folder: where the files are.

    Returns:
        float32 features, labels [N, C] float32; in the second form the nodes of each part are
        those counted.

    Raises:
        DatasetError: a file is missing, damaged, or contradicts another one.
    """
    folder = Path(folder)
    if (folder / "role.json").exists():
        return _one_graph(folder)
    parts = [_graph_by_graph(folder, split) for split in SPLITS]
    widths = {(graph.width, _labels_of(graph).shape[1]) for part in parts for graph in part}
    if len(widths) != 1:
        raise DatasetError(
            f"{folder} must have as many features and labels in every part; got {sorted(widths)}"
        )
    ((_, outputs),) = widths
    return GraphSplits(train=parts[0], validation=parts[1], test=parts[2], outputs=outputs)


def _labels_of(graph: Graphs) -> Tensor:
    assert graph.labels is not None
    return graph.labels


def _graph_by_graph(folder: Path, split: str) -> tuple[Graphs, ...]:
    path = folder / f"{split}_graph.json"
    edges = _links(path)
    features = _table(folder / f"{split}_feats.npy")
    labels = _binary(folder / f"{split}_labels.npy", _table(folder / f"{split}_labels.npy"))
    owner = _array(folder / f"{split}_graph_id.npy")
    nodes = len(features)
    if len(labels) != nodes or owner.shape != (nodes,) or owner.dtype.kind not in "iu":
        raise DatasetError(
            f"{folder} must have a row of {split}_feats.npy, of {split}_labels.npy and a whole "
            f"number of {split}_graph_id.npy per node; got shapes {features.shape}, "
            f"{labels.shape} and {owner.shape} of {owner.dtype}"
        )
    if not nodes:
        raise DatasetError(f"{folder / f'{split}_feats.npy'} must have a row per node; got none")
    _check_nodes(path, edges, nodes)
    if (owner[edges[0]] != owner[edges[1]]).any():
        raise DatasetError(f"{path} must keep links inside the graphs of {split}_graph_id.npy")
    # Nodes of a graph need not follow one another in the files.
    order = np.argsort(owner, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(nodes)
    edges = place[edges]
    sizes = np.unique(owner, return_counts=True)[1].tolist()
    ends = np.cumsum(sizes).tolist()
    by_graph = edges[:, np.argsort(edges[0], kind="stable")]
    cuts = np.searchsorted(by_graph[0], ends).tolist()
    found, first, start = [], 0, 0
    for end, cut in zip(ends, cuts, strict=True):
        rows = order[start:end]
        found.append(
            Graphs(
                adjacency=_binary_adjacency(by_graph[:, first:cut] - start, end - start),
                features=torch.from_numpy(features[rows]),
                labels=torch.from_numpy(labels[rows]),
            )
        )
        first, start = cut, end
    return tuple(found)


def _one_graph(folder: Path) -> GraphSplits:
    features = _table(folder / "feats.npy")
    nodes = len(features)
    labels = _class_map(folder / "class_map.json", nodes)
    role = _json(folder / "role.json")
    counted = []
    for key in ("tr", "va", "te"):
        numbers = role.get(key) if isinstance(role, dict) else None
        if not isinstance(numbers, list) or not all(
            type(number) is int and 0 <= number < nodes for number in numbers
        ):
            raise DatasetError(
                f"{folder / 'role.json'} must hold lists of nodes, 0 to {nodes - 1}, as 'tr', "
                f"'va' and 'te'; {key!r} is no such list"
            )
        mask = torch.zeros(nodes, dtype=torch.bool)
        mask[numbers] = True
        counted.append(mask)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    adjacencies = [
        _binary_adjacency(_compressed(folder / name, nodes), nodes)
        for name in ("adj_train.npz", "adj_full.npz")
    ]
    train, validation, test = (
        (Graphs(adjacency=adjacency, features=x, labels=y, counted=mask),)
        for adjacency, mask in zip(
            (adjacencies[0], adjacencies[1], adjacencies[1]), counted, strict=True
        )
    )
    return GraphSplits(train=train, validation=validation, test=test, outputs=labels.shape[1])


def _binary_adjacency(edges: NDArray[np.int64], nodes: int) -> Adjacency:
    edges = np.unique(edges[:, edges[0] != edges[1]], axis=1)
    index = torch.from_numpy(edges.astype(np.int64).reshape(2, -1))
    return Adjacency.from_coo(index, torch.ones(index.shape[1]), nodes=nodes, symmetric=None)


def _links(path: Path) -> NDArray[np.int64]:
    """[2, E], both directions of links that have none."""
    data = _json(path)
    try:
        pairs = [(link["source"], link["target"]) for link in data["links"]]
        directed = bool(data.get("directed", False))
        edges = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} must hold 'links', a list of objects with 'source' and 'target': {error!r}"
        ) from error
    if not ((edges == np.floor(edges)) & (np.abs(edges) < 2**53)).all():
        raise DatasetError(f"{path} must hold whole numbers as 'source' and 'target'")
    whole = edges.astype(np.int64)
    return whole if directed else np.concatenate([whole, whole[::-1]], axis=1)


def _class_map(path: Path, nodes: int) -> NDArray[np.float32]:
    data = _json(path)
    try:
        rows = np.array([data[str(node)] for node in range(nodes)], dtype=np.float32)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} must hold a list of {nodes} nodes' labels, of one length each: {error!r}"
        ) from error
    if rows.ndim != 2:
        raise DatasetError(f"{path} must hold a list of zeros and ones for each node")
    return _binary(path, rows)


def _binary(path: Path, labels: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isin(labels, (0.0, 1.0)).all():
        raise DatasetError(f"{path} must hold zeros and ones")
    return labels


def _check_nodes(path: Path, edges: NDArray[np.int64], nodes: int) -> None:
    if edges.size and (edges.min() < 0 or edges.max() >= nodes):
        raise DatasetError(
            f"{path} must hold numbers of nodes, 0 to {nodes - 1}; got {edges.min()} to "
            f"{edges.max()}"
        )


def _compressed(path: Path, nodes: int) -> NDArray[np.int64]:
    """The places of a matrix that SciPy saved in compressed rows, [2, nnz]."""
    arrays = _load(path)
    parts = arrays if isinstance(arrays, dict) else {}
    missing = set(COMPRESSED_ROWS) - set(parts)
    if missing:
        raise DatasetError(
            f"{path} must be a matrix in compressed rows as scipy.sparse.save_npz writes it; it "
            f"lacks {', '.join(sorted(missing))}"
        )
    crow, col, shape = parts["indptr"], parts["indices"], parts["shape"]
    fits = (
        tuple(shape) == (nodes, nodes)
        and crow.shape == (nodes + 1,)
        and col.ndim == 1
        and crow.dtype.kind in "iu"
        and col.dtype.kind in "iu"
        and crow[0] == 0
        and crow[-1] == len(col)
        and bool((np.diff(crow.astype(np.int64)) >= 0).all())
    )
    if not fits:
        raise DatasetError(
            f"{path} must be a matrix of {nodes} rows and columns in compressed rows; got shape "
            f"{tuple(shape)}, indptr {crow.shape} and indices {col.shape}"
        )
    starts: NDArray[np.int64] = crow.astype(np.int64)
    row = np.repeat(np.arange(nodes), starts[1:] - starts[:-1])
    edges = np.stack([row, col.astype(np.int64)])
    _check_nodes(path, edges, nodes)
    return edges


def _table(path: Path) -> NDArray[np.float32]:
    """[rows, columns] float32."""
    array = _array(path)
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
        raise DatasetError(f"{path} must hold numbers [rows, columns]; got {array.shape}")
    with np.errstate(over="ignore"):  # what overflows is found below
        table = array.astype(np.float32)
    if not np.isfinite(table).all():
        raise DatasetError(f"{path} must hold finite numbers")
    return table


def _array(path: Path) -> NDArray[Any]:
    array = _load(path)
    if isinstance(array, dict):
        raise DatasetError(f"{path} must hold one array; it is an archive of several")
    return array


def _load(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """An array, or those of an archive that make compressed rows. Nothing is unpickled."""
    try:
        if zipfile.is_zipfile(path):
            return _load_archive(path)
        # A mapped file can declare no more than it holds.
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; a folder with all files is needed") from error
    # Headers are read as Python, archives by zlib and others: they raise what comes their way.
    except Exception as error:
        raise DatasetError(f"{path} is in none of NumPy's formats: {error}") from error


def _load_archive(path: Path) -> dict[str, NDArray[Any]]:
    most = SMALL + GROWTH * path.stat().st_size
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        present = set(archive.namelist())
        members = {name: f"{name}.npy" for name in COMPRESSED_ROWS if f"{name}.npy" in present}
        size = sum(archive.getinfo(member).file_size for member in members.values())
        if size > most:
            raise ValueError(f"its arrays take {size:,} bytes, where {most:,} should do")
        for name, member in members.items():
            with archive.open(member) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _json(path: Path) -> Any:
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON: {error}") from error
