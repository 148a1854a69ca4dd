"""A structured cell solved through a layer, with all options in one list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.cells import Adjacency, DenseCell, GraphCell, StructuredCell

OF_CELL = ("norm", "accelerate", "one_op")


def solve_dense(b: Tensor, weight: Tensor, *, activation: str, **options: Any) -> Tensor:
    """z = φ(W z + b) by at most 100 steps."""
    of_cell = {name: options.pop(name) for name in OF_CELL if name in options}
    cell = DenseCell(weight, activation=activation, **of_cell)
    return _solve(cell, b, **({"max_steps": 100} | options))


def solve_graph(
    b: Tensor, weight: Tensor, adjacency: Adjacency, *, activation: str, **options: Any
) -> Tensor:
    """X = φ(W X A + B) by at most 300 steps."""
    of_cell = {name: options.pop(name) for name in OF_CELL if name in options}
    cell = GraphCell(weight, adjacency, activation=activation, **of_cell)
    return _solve(cell, b, **({"max_steps": 300} | options))


def _solve(
    cell: StructuredCell,
    b: Tensor,
    *,
    z0: Tensor | None = None,
    gradient: dk.Gradient | None = None,
    on_solve: Any = "warn",
    **options: Any,
) -> Tensor:
    layer = dk.DEQ(
        cell,
        solver=dk.FixedPoint(**options),
        gradient=gradient,
        on_solve=_of_forward(on_solve) if callable(on_solve) else on_solve,
    )
    assert layer.solves_in_one_op() or not cell.one_op
    start = torch.zeros_like(b) if z0 is None and isinstance(b, Tensor) else z0
    z: Tensor = layer(start, b)
    return z


def _of_forward(told: Callable[[dk.Solution], object]) -> Callable[[dk.Solution, str], None]:
    """Told of forward solves alone."""

    def tell(solution: dk.Solution, equation: str) -> None:
        if equation == "forward":
            told(solution)

    return tell
