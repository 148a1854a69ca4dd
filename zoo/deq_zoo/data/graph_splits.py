"""Graphs to train on, to choose by, and to report."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deq_kernels.models.ignn import Graphs


@dataclass(frozen=True, kw_only=True)
class GraphSplits:
    """A dataset: graphs to train on, to choose by, and to report.

    The three may be the same graph with other nodes `counted`.

    Attributes:
        train: each of one or many graphs.
        validation: see train.
        test: see train.
        outputs: number of classes, or of labels that are 0 or 1 each.
    """

    train: tuple[Graphs, ...]
    validation: tuple[Graphs, ...]
    test: tuple[Graphs, ...]
    outputs: int

    @property
    def width(self) -> int:
        """p, the number of features of a node."""
        return self.train[0].width

    @property
    def multilabel(self) -> bool:
        """Whether labels are 0 or 1 each, instead of classes."""
        labels = self.train[0].labels
        return labels is not None and labels.is_floating_point()


def node_splits(
    graph: Graphs, *, train: Tensor, validation: Tensor, test: Tensor, outputs: int
) -> GraphSplits:
    """The same graph three times, with other nodes counted.

    Args:
        graph: with the labels of all nodes.
        train: numbers of nodes, [.] int64.
        validation: see train.
        test: see train.
        outputs: see `GraphSplits`.
    """

    def counting(chosen: Tensor) -> tuple[Graphs]:
        counted = torch.zeros(graph.adjacency.nodes, dtype=torch.bool)
        counted[chosen] = True
        return (replace(graph, counted=counted),)

    return GraphSplits(
        train=counting(train),
        validation=counting(validation),
        test=counting(test),
        outputs=outputs,
    )
