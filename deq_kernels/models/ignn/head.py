"""From the nodes' states to scores of graphs or nodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.cells import Adjacency
from deq_kernels.models.ignn.config import IGNNConfig

_REDUCTIONS = {"sum": "sum", "mean": "mean", "max": "amax"}


class GraphHead(nn.Module):
    """Scores of graphs: pooling, then Linear, ReLU, dropout, Linear."""

    def __init__(self, config: IGNNConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.pooling = config.pooling
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, config.outputs),
        )

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        """[N, m] to [G, outputs]."""
        scores: Tensor = self.layers(pool(x, adjacency, self.pooling))
        return scores


class NodeHead(nn.Module):
    """Scores of nodes: x / ‖x‖ if asked for, dropout, and a Linear without bias."""

    def __init__(self, config: IGNNConfig) -> None:
        super().__init__()
        self.unit_states = config.unit_states
        self.dropout = nn.Dropout(config.dropout)
        self.linear = (
            nn.Linear(config.widths[-1], config.outputs, bias=False) if config.head else None
        )

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        """[N, m] to [N, outputs]."""
        if self.unit_states:
            x = F.normalize(x, dim=-1)
        if self.linear is None:
            return x
        scores: Tensor = self.linear(self.dropout(x))
        return scores


def pool(x: Tensor, adjacency: Adjacency, pooling: str) -> Tensor:
    """One row per graph from its nodes' rows, [N, m] to [G, m]; zeros for a graph without nodes.

    Args:
        x: [N, m].
        adjacency: which nodes belong together.
        pooling: "sum", "mean" or "max".
    """
    sizes = adjacency.graph_ptr.diff()
    graphs = torch.arange(len(sizes), device=x.device)
    owner = graphs.repeat_interleave(sizes, output_size=len(x))[:, None].expand_as(x)
    pooled = x.new_zeros(len(sizes), x.shape[1])
    return pooled.scatter_reduce(0, owner, x, _REDUCTIONS[pooling], include_self=False)
