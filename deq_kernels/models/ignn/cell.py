"""The map f whose fixed point is a layer's state, for solvers that do not know its structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.cells import Adjacency, propagate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "softplus": F.softplus,
    "identity": lambda x: x,
}


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
    def of(cls, adjacency: Adjacency) -> Slots:
        """For the graphs of an adjacency."""
        ptr = adjacency.graph_ptr
        sizes = ptr.diff()
        graphs = len(sizes)
        longest = adjacency.pattern.graphs.longest
        # Node i of graph g stands longest · g − ptr[g] further on than in the batch.
        shift = torch.arange(graphs, device=ptr.device) * longest - ptr[:-1]
        nodes = torch.arange(adjacency.nodes, device=ptr.device)
        of_node = nodes + shift.repeat_interleave(sizes, output_size=adjacency.nodes)
        return cls(of_node, graphs, longest)

    def spread(self, x: Tensor) -> Tensor:
        """[N, m] as [G, longest, m]."""
        size = x.shape[1]
        filled = x.new_zeros(self.graphs * self.longest, size)
        return filled.index_copy(0, self.of_node, x).view(self.graphs, self.longest, size)

    def gather(self, z: Tensor) -> Tensor:
        """[G, longest, m] as [N, m]."""
        return z.reshape(self.graphs * self.longest, z.shape[2]).index_select(0, self.of_node)


def graph_cell(
    z: Tensor, b: Tensor, weight: Tensor, adjacency: Adjacency, activation: str
) -> Tensor:
    """f(z) = φ(Aᵀ z Wᵀ + b), node-major: one evaluation of X ↦ φ(W X A + B).

    Args:
        z: [N, m].
        b: [N, m].
        weight: W, [m, m].
        adjacency: A.
        activation: the name of φ.
    """
    return ACTIVATIONS[activation](F.linear(propagate(z, adjacency), weight) + b)
