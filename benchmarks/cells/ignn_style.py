"""Graph cells as the published implementation of IGNN iterates them.

States are feature-major, [n, N], as in the paper; A is a sparse tensor in coordinates; every step
allocates its results; and the largest change is read on the host in every step. Source: Gu et al.
2020, *Implicit Graph Neural Networks*, section 4, and the code published with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import MAX_STEPS, TOLERANCE, CellProblem, Direction


class IgnnLoop:
    """X ← relu(W X A + B), or W ← Wᵀ (φ' ⊙ X) Aᵀ + L, until no entry moves by the tolerance."""

    def __init__(self, problem: CellProblem, direction: Direction) -> None:
        solve = direction is Direction.SOLVE
        self._matrix = problem.coo(transposed=solve)
        self._weight = problem.weight if solve else problem.weight.T
        self._bias = (problem.bias if solve else problem.cotangent).T.contiguous()
        self._slope = None if solve else problem.slope.T.contiguous()
        self.steps = 0

    def __call__(self) -> Tensor:
        x = torch.zeros_like(self._bias)
        for self.steps in range(1, MAX_STEPS + 1):
            product = self._weight @ (x if self._slope is None else self._slope * x)
            new = torch.sparse.mm(self._matrix, product.T).T + self._bias
            if self._slope is None:
                new = torch.relu(new)
            change = torch.linalg.vector_norm(new - x, float("inf"))
            x = new
            if change.item() < TOLERANCE:
                break
        return x.T
