"""How the recorder calls structured cells: the one file to change when their way in changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from python_tests.cells.solves import solve_dense, solve_graph

Heard = Callable[[dk.Solution], object]


def dense(u: Tensor, weight: Tensor, *, heard: Heard, **options: Any) -> Tensor:
    """z = φ(W z + u) from zero; `heard` is called with the forward solve."""
    return solve_dense(u, weight, on_solve=heard, **options)


def graph(
    b: Tensor, weight: Tensor, adjacency: Adjacency, *, heard: Heard, **options: Any
) -> Tensor:
    """X = φ(W X A + B) from zero; `heard` is called with the forward solve."""
    return solve_graph(b, weight, adjacency, on_solve=heard, **options)
