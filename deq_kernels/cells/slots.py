"""Graphs of different sizes as samples of one size, for solvers that know rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells.pattern import Graphs


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the nodes of graphs of different sizes stand in a tensor with a row per graph.

    A sample of a solver is a graph, and every row of a state has as many elements: the longest
    graph's. Rows of shorter ones are filled up with zeros, which f leaves as they are.

    Attributes:
        of_node: [N] int64, in [0, graphs × longest).
        graphs: G.
        longest: nodes of the largest graph.
    """

    of_node: Tensor
    graphs: int
    longest: int

    @classmethod
    def of(cls, graphs: Graphs) -> Slots:
        """For the graphs of a batch."""
        ptr, nodes = graphs.ptr, len(graphs.of_row)
        # Node i of graph g stands longest · g − ptr[g] further on than in the batch.
        shift = torch.arange(len(graphs), device=ptr.device) * graphs.longest - ptr[:-1]
        of_node = torch.arange(nodes, device=ptr.device) + shift.index_select(0, graphs.of_row)
        return cls(of_node, len(graphs), graphs.longest)

    def spread(self, x: Tensor) -> Tensor:
        """[N, n] as [G, longest, n]."""
        size = x.shape[1]
        filled = x.new_zeros(self.graphs * self.longest, size)
        return filled.index_copy(0, self.of_node, x).view(self.graphs, self.longest, size)

    def gather(self, z: Tensor) -> Tensor:
        """[G, longest, n] as [N, n]."""
        return z.reshape(self.graphs * self.longest, z.shape[2]).index_select(0, self.of_node)
