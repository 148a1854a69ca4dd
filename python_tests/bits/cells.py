"""What is recorded of structured cells: solves, gradients, and the adjoint's own derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from python_tests.bits import door
from python_tests.bits.solves import Case
from python_tests.bits.values import DTYPES, digest, of_solution, pattern

OPTIONS: dict[str, dict[str, Any]] = {
    "accelerated": {},
    "plain": {"accelerate": False},
    "damped": {"accelerate": False, "damping": 0.7},
    "l2": {"norm": "l2"},
    "max": {"norm": "max"},
    "rows": {"norm": "rows"},
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "neumann": {"gradient": dk.Neumann(steps=4, damping=0.5)},
    "jacobian_free": {"gradient": dk.JacobianFree()},
    "unrolled": {"gradient": dk.Unrolled(steps=4, damping=0.5)},
    "own_adjoint": {"gradient": dk.Implicit(solver=dk.FixedPoint(max_steps=60, rtol=1e-6))},
}
"""Options of both cells by case, besides an activation of tanh."""

SIZES = (5, 1, 9, 12)
"""Nodes of the graphs of a batch."""


def cell_cases() -> Iterator[Case]:
    """Both cells with every option in every dtype."""
    for dtype_name, dtype in DTYPES.items():
        for name, options in OPTIONS.items():
            for kind in ("dense", "graph"):
                yield f"cells/{kind}/{name}/{dtype_name}", _solved(kind, dtype, options)
    for kind in ("dense", "graph"):
        yield f"cells/{kind}/second_derivatives", _twice(kind)


def _inputs(kind: str, dtype: torch.dtype) -> tuple[list[Tensor], Adjacency | None]:
    """Leaves: bias and weight, and of a graph the values of its edges."""
    size = 11
    weight = pattern(size, size, dtype=dtype, seed=2, scale=0.25).requires_grad_()
    if kind == "dense":
        return [pattern(6, size, dtype=dtype).requires_grad_(), weight], None
    edges, start = [], 0
    for count in SIZES:
        for node in range(count):
            for reach in (1, 3):
                edges.append((start + node, start + (node + reach) % count))
        start += count
    index = torch.tensor(sorted(set(edges))).T
    ptr = torch.tensor([0, *SIZES]).cumsum(0)
    values = pattern(index.shape[1], dtype=dtype, seed=4, scale=0.9).requires_grad_()
    adjacency = Adjacency.from_coo(index, values, nodes=start, graph_ptr=ptr)
    return [pattern(start, size, dtype=dtype).requires_grad_(), weight, values], adjacency


def _solve(
    leaves: list[Tensor], adjacency: Adjacency | None, options: dict[str, Any]
) -> tuple[Tensor, dk.Solution]:
    heard: list[dk.Solution] = []
    options = {"activation": "tanh"} | options
    if adjacency is None:
        z = door.dense(leaves[0], leaves[1], heard=heard.append, **options)
    else:
        z = door.graph(leaves[0], leaves[1], adjacency, heard=heard.append, **options)
    return z, heard[0]


def _solved(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> dict[str, str]:
    leaves, adjacency = _inputs(kind, dtype)
    z, solution = _solve(leaves, adjacency, options)
    z.backward(pattern(*z.shape, dtype=dtype, seed=6))
    gradients = zip(("of_bias", "of_weight", "of_values"), leaves, strict=False)
    return {
        "output": digest(z),
        **of_solution(solution),
        **{name: digest(leaf.grad) for name, leaf in gradients},
    }


def _twice(kind: str) -> dict[str, str]:
    leaves, adjacency = _inputs(kind, torch.float64)
    z, _ = _solve(leaves, adjacency, {})
    cotangent = pattern(*z.shape, dtype=torch.float64, seed=6)
    first = torch.autograd.grad(z, leaves, cotangent, create_graph=True)
    zero = torch.zeros((), dtype=torch.float64)
    second = torch.autograd.grad(sum(((g * g).sum() for g in first), zero), leaves)
    return {f"leaf_{number}": digest(g) for number, g in enumerate(second)}
