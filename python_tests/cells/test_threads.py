"""Bitwise: neither the solution nor its gradients depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deq_kernels.cells import Adjacency
from python_tests.cells.batches import same_bits
from python_tests.cells.solves import solve_dense, solve_graph

# One graph large enough that all threads share it, and small ones that they take in turn.
SIZES = (700, 1, 0, 40, 35, 50)
FEATURES = 48


def _graphs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Adjacency, Tensor]:
    ptr = torch.tensor([0, *SIZES]).cumsum(0)
    index = torch.cat(
        [
            torch.randint(max(size, 1), (2, 4 * size)) + start
            for size, start in zip(SIZES, ptr.tolist(), strict=False)
        ],
        1,
    )
    nodes = int(ptr[-1])
    values = (torch.rand(index.shape[1]) / 8).to(dtype).requires_grad_()
    adjacency = Adjacency.from_coo(index, values, nodes=nodes, graph_ptr=ptr)
    b = torch.randn(nodes, FEATURES).to(dtype).requires_grad_()
    return b, _weight(dtype), adjacency, values


def _weight(dtype: torch.dtype) -> Tensor:
    weight = torch.randn(FEATURES, FEATURES)
    return (0.8 * weight / weight.abs().sum(1, keepdim=True)).to(dtype).requires_grad_()


@same_bits
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_graphs_and_all_their_gradients(
    set_threads: Callable[[int], None], dtype: torch.dtype
) -> None:
    b, weight, adjacency, values = _graphs(dtype)
    loss = torch.randn_like(b)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        z = solve_graph(b, weight, adjacency, activation="gelu", atol=1e-3, rtol=0.0)
        found.append((z.detach(), *torch.autograd.grad(z, (b, weight, values), loss)))
    for other in found[1:]:
        for first, again in zip(found[0], other, strict=True):
            assert torch.equal(first, again)


@same_bits
def test_rows_their_gradients_and_second_derivatives(set_threads: Callable[[int], None]) -> None:
    weight, u = _weight(torch.float64), torch.randn(900, FEATURES, dtype=torch.float64)
    u.requires_grad_()
    loss = torch.randn_like(u)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        z = solve_dense(u, weight, activation="tanh")
        first = torch.autograd.grad(z, (u, weight), loss, create_graph=True)
        second = torch.autograd.grad([x.square().sum() for x in first], (u, weight))
        found.append(tuple(x.detach() for x in (z, *first, *second)))
    for other in found[1:]:
        for one, again in zip(found[0], other, strict=True):
            assert torch.equal(one, again)
