"""Small graphs with everything that a graph can have, and small networks on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.cells import Adjacency, propagate
from deq_kernels.models import IGNN, IGNNConfig
from deq_zoo.data import Graphs

SIZES = (3, 0, 1, 5)
"""An empty graph among them; the last node of the largest one is isolated."""

NODES = IGNNConfig(
    features=2,
    outputs=3,
    target="nodes",
    widths=(4, 3),
    activation="tanh",
    dropout=0.0,
)
GRAPHS = replace(NODES, target="graphs")
TIGHT = dk.FixedPoint(max_steps=500, rtol=0.0, atol=1e-14)


def graphs_of(
    *, symmetric: bool = False, sizes: tuple[int, ...] = SIZES, features: int = 2
) -> Graphs:
    """Weighted graphs in float64, with self loops; labels of nodes."""
    parts = []
    for size in sizes:
        dense = torch.rand(size, size, dtype=torch.float64)
        dense = dense * (torch.rand(size, size) < 0.5)
        if size > 3:
            dense[-1] = dense[:, -1] = 0.0
        if symmetric:
            dense = dense + dense.T
        index = dense.nonzero().T
        parts.append(
            Graphs(
                adjacency=Adjacency.from_coo(
                    index, dense[index[0], index[1]], nodes=size, symmetric=symmetric
                ),
                features=torch.randn(size, features, dtype=torch.float64),
                labels=torch.randint(3, (size,)),
            )
        )
    return Graphs.join(parts)


def no_graphs(*, features: int = 2) -> Graphs:
    """A batch of nothing."""
    adjacency = Adjacency.from_coo(
        torch.zeros(2, 0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.float64),
        nodes=0,
        graph_ptr=torch.tensor([0]),
    )
    return Graphs(adjacency=adjacency, features=torch.zeros(0, features, dtype=torch.float64))


def dense_of(adjacency: Adjacency) -> Tensor:
    """A."""
    return propagate(torch.eye(adjacency.nodes, dtype=adjacency.dtype), adjacency).T


def model_of(config: IGNNConfig, *, seed: int = 0, **options: Any) -> IGNN:
    """In float64 and solved to rounding; equal seeds and shapes give equal parameters."""
    torch.manual_seed(seed)
    tight = {"solver": TIGHT, "gradient": dk.Implicit(solver=TIGHT)}
    return IGNN(config, **(tight | options)).double()
