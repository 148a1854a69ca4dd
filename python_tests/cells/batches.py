"""Batches of graphs with everything that a graph can have, and what is true of them densely."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deq_kernels import _native
from deq_kernels.cells import Adjacency
from deq_kernels.ops.cells import NAMES, Activation, value

DOUBLE = torch.float64
SIZES = (4, 0, 1, 3, 6)
"""Nodes per graph: an empty graph, and graphs of one node, among them."""

ACTIVATIONS = NAMES

same_bits = pytest.mark.skipif(
    _native.load_cpu().path is None,
    reason="the reference multiplies with torch, whose bits depend on how many rows there are",
)


@dataclass(frozen=True)
class GraphBatch:
    """A cell on graphs: X = φ(W X A + B), node-major.

    Attributes:
        adjacency: A with its values.
        weight: W, [m, m].
        b: Bᵀ, [N, m].
        dense: A, [N, N].
    """

    adjacency: Adjacency
    weight: Tensor
    b: Tensor
    dense: Tensor

    def cell(self, z: Tensor, weight: Tensor, dense: Tensor, b: Tensor, activation: str) -> Tensor:
        """φ(Aᵀ z Wᵀ + b), as autograd knows it."""
        return value(Activation[activation.upper()], dense.mT @ z @ weight.mT + b)


def edges_of(dense: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of a matrix as index [2, nnz] and values [nnz], in a scrambled order."""
    index = dense.nonzero().T
    index = index[:, torch.randperm(index.shape[1])]
    return index, dense[index[0], index[1]]


def contraction(size: int, norm: float = 0.6) -> Tensor:
    """W [size, size] float64 with ‖W‖_∞ = norm."""
    weight = torch.randn(size, size, dtype=DOUBLE)
    return norm * weight / weight.abs().sum(1).max()


def graph_batch(
    *, features: int = 3, symmetric: bool = False, sizes: tuple[int, ...] = SIZES
) -> GraphBatch:
    """Sparse blocks with self loops and isolated nodes, scaled to ρ(|A|) ≤ 1; the last node of
    every larger graph is isolated."""
    nodes = sum(sizes)
    dense = torch.zeros(nodes, nodes, dtype=DOUBLE)
    start = 0
    for size in sizes:
        connected = size - 1 if size > 2 else size
        block = torch.rand(connected, connected, dtype=DOUBLE) * (
            torch.rand(connected, connected) < 0.6
        )
        if connected:
            block[0, 0] = 0.5
        if symmetric:
            block = (block + block.T) / 2
        block = block / block.sum(1).amax().clamp(min=1e-3) if connected else block
        dense[start : start + connected, start : start + connected] = block
        start += size
    index, values = edges_of(dense)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    adjacency = Adjacency.from_coo(index, values, nodes=nodes, graph_ptr=ptr, symmetric=symmetric)
    b = torch.randn(nodes, features, dtype=DOUBLE)
    return GraphBatch(adjacency, contraction(features), b, dense)


def exact(batch: GraphBatch, activation: str) -> Tensor:
    """The solution, by so many steps that nothing moves any more."""
    z = torch.zeros_like(batch.b)
    for _ in range(400):
        z = batch.cell(z, batch.weight, batch.dense, batch.b, activation)
    return z


def jacobian(batch: GraphBatch, z: Tensor, activation: str) -> Tensor:
    """∂f/∂z of the flattened node-major state, [N m, N m]: diag(φ') (Aᵀ ⊗ W)."""
    x = (batch.dense.T @ z @ batch.weight.T + batch.b).requires_grad_()
    (slopes,) = torch.autograd.grad(value(Activation[activation.upper()], x).sum(), x)
    return slopes.reshape(-1, 1) * torch.kron(batch.dense.T.contiguous(), batch.weight)
