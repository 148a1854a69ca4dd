"""Amazon's co-purchasing network: 58 product types, predicted from what is bought together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deq_kernels.cells import Adjacency
from deq_kernels.models.ignn import Graphs
from deq_kernels.options import check_number
from deq_zoo.data.errors import DatasetError
from deq_zoo.data.graph_splits import GraphSplits, node_splits
from deq_zoo.data.text import read_counts, read_table, read_text

PORTION = "0.06"


def load_amazon(
    folder: Path | str,
    *,
    portion: str = PORTION,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> GraphSplits:
    """The folder `amazon-all` of SSE (Dai et al. 2018), as IGNN reads it.

    meta.txt has the numbers of nodes and of labels; adj_list.txt a line per node, the number of its
    neighbours and then their numbers, from 0; label.txt a line per node of zeros and ones;
    train_idx-PORTION.txt a number of a node per line, and so has test_idx-PORTION.txt or
    test_idx.txt.

    Args:
        folder: where the files are.
        portion: of the nodes to train on, as it stands in the files' names.
        validation_fraction: share of the nodes to train on that are kept to choose by, as there is
            no file of such.
        seed: draws them.

    Returns:
        One graph with weights of 1 in the directions that the file gives, without features
        (`features=None`: the published input is the unit matrix), labels [N, C] float32.

    Raises:
        DatasetError: a file is missing, damaged, or contradicts another one.
        ValueError: an option is out of its range.
    """
    check_number("validation_fraction", validation_fraction, lambda x: 0 < x < 1, "between 0 and 1")
    folder = Path(folder)
    meta = read_table(folder / "meta.txt", np.int64, columns=2, separator=None)
    if len(meta) != 1 or (meta < 1).any():
        raise DatasetError(
            f"{folder / 'meta.txt'} must hold one line, the numbers of nodes and of labels; got "
            f"{meta.tolist()}"
        )
    nodes, outputs = meta[0].tolist()
    labels = read_table(folder / "label.txt", np.float32, columns=outputs, separator=None)
    if len(labels) != nodes or not np.isin(labels, (0.0, 1.0)).all():
        raise DatasetError(
            f"{folder / 'label.txt'} must hold {nodes} lines of zeros and ones; got {len(labels)} "
            "lines, or other numbers"
        )
    chosen = _nodes_of(folder / f"train_idx-{portion}.txt", nodes)
    test_file = folder / f"test_idx-{portion}.txt"
    test = _nodes_of(test_file if test_file.exists() else folder / "test_idx.txt", nodes)
    if len(chosen) < 2 or torch.isin(chosen, test).any():
        raise DatasetError(
            f"{folder} must have at least two nodes to train on, none of them among those to test "
            f"on; got {len(chosen)} with {int(torch.isin(chosen, test).sum())} in both"
        )
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
    kept = min(max(1, round(validation_fraction * len(chosen))), len(chosen) - 1)
    adjacency = Adjacency.from_coo(
        _edges(folder / "adj_list.txt", nodes), nodes=nodes, symmetric=None
    ).to(dtype=torch.float32)
    return node_splits(
        Graphs(adjacency=adjacency, labels=torch.from_numpy(labels)),
        train=chosen[kept:],
        validation=chosen[:kept],
        test=test,
        outputs=outputs,
    )


def _nodes_of(path: Path, nodes: int) -> Tensor:
    numbers = read_counts(path)
    if not len(numbers) or numbers.min() < 0 or numbers.max() >= nodes:
        raise DatasetError(f"{path} must hold numbers of nodes, 0 to {nodes - 1}, one per line")
    return torch.from_numpy(np.unique(numbers))


def _edges(path: Path, nodes: int) -> Tensor:
    """[2, nnz], from each line's node to its neighbours."""
    lines = read_text(path).splitlines()
    if len(lines) != nodes:
        raise DatasetError(f"{path} must have a line per node, {nodes}; got {len(lines)}")
    neighbours: list[int] = []
    counts = []
    for number, line in enumerate(lines, start=1):
        try:
            count, *others = map(int, line.split())
        except ValueError as error:
            raise DatasetError(f"{path} must hold whole numbers; line {number}: {error}") from error
        if count != len(others) or not all(0 <= other < nodes for other in others):
            raise DatasetError(
                f"{path} must hold the number of neighbours and then their numbers, 0 to "
                f"{nodes - 1}; line {number} has {line[:80]!r}"
            )
        neighbours += others
        counts.append(count)
    source = torch.arange(nodes).repeat_interleave(torch.tensor(counts))
    return torch.stack([source, torch.tensor(neighbours, dtype=torch.int64)])
