"""The equations that every provider solves: a graph cell and its adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .cases import CellCase

TOLERANCE = 3e-6
"""IGNN's: the iteration ends when no entry changes by as much (Gu et al. 2020)."""
MAX_STEPS = 300
KAPPA = 0.9
"""Bound on ‖W‖_∞, IGNN's for graphs whose spectral radius is 1."""
_DIAGONAL = 0.7
_EDGES_PER_NODE = 2


class Direction(Enum):
    """Which equation."""

    SOLVE = "solve"
    """Xᵀ = relu(Aᵀ Xᵀ Wᵀ + Bᵀ)."""
    ADJOINT = "adjoint"
    """w = ℓ + A (φ' ⊙ w) W, with φ' at the solution of the first."""


@dataclass(frozen=True)
class CellProblem:
    """A graph cell on a batch of graphs, node-major.

    Attributes:
        source: row i of each entry A[i, j], [nnz]; sorted by i, then j.
        target: column j of each entry, [nnz].
        values: the entries, [nnz].
        graph_ptr: where each graph's nodes begin, [G + 1].
        weight: W, [n, n].
        bias: Bᵀ, [N, n].
        cotangent: ℓ, [N, n], with entries in (-1, 1).
        slope: φ' at the solution, [N, n].
        symmetric: whether A is.
    """

    source: Tensor
    target: Tensor
    values: Tensor
    graph_ptr: Tensor
    weight: Tensor
    bias: Tensor
    cotangent: Tensor
    slope: Tensor
    symmetric: bool

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.bias)

    def coo(self, *, transposed: bool) -> Tensor:
        """A or Aᵀ as a coalesced sparse tensor, [N, N]."""
        ends = (self.target, self.source) if transposed else (self.source, self.target)
        size = (self.nodes, self.nodes)
        # Said once here, or torch warns that it does not check.
        matrix = torch.sparse_coo_tensor(
            torch.stack(ends), self.values, size, check_invariants=True
        )
        return matrix.coalesce()

    def evaluate(self, direction: Direction, x: Tensor) -> Tensor:
        """The right-hand side of the equation at x, [N, n]."""
        if direction is Direction.SOLVE:
            return torch.relu(self.coo(transposed=True) @ x @ self.weight.T + self.bias)
        return self.cotangent + self.coo(transposed=False) @ (self.slope * x) @ self.weight

    def to(self, dtype: torch.dtype, device: torch.device) -> CellProblem:
        """The same numbers, rounded to another dtype, on a device."""
        return CellProblem(
            self.source.to(device),
            self.target.to(device),
            self.values.to(device, dtype),
            self.graph_ptr.to(device),
            self.weight.to(device, dtype),
            self.bias.to(device, dtype),
            self.cotangent.to(device, dtype),
            self.slope.to(device, dtype),
            self.symmetric,
        )


def make_problem(case: CellCase, *, seed: int = 0) -> tuple[CellProblem, dict[Direction, Tensor]]:
    """Draw the problem of a case, and solve it in float64.

    A is (D + I)^-1/2 (A + I) (D + I)^-1/2 with the degrees of the rows, as IGNN takes it. Random
    graphs have about two edges per node; chains lead from each node to the next. W is
    κ (0.7 I + 0.3 R) with random R, ‖R‖_∞ = 1: near the edge of what IGNN allows, where training
    drives it, so that some thirty steps are needed. The numbers are those of float32, so that
    all dtypes are given the same problem.

    Returns:
        The problem in float64 on the CPU, and the answers, [N, n].
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = _sizes(case, generator)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    pieces = [
        (_chain(size) if case.chains else _random_graph(size, generator)) + int(start)
        for size, start in zip(sizes, ptr[:-1], strict=True)
    ]
    source, target = torch.cat(pieces, 1)
    nodes = int(ptr[-1])
    degree = torch.bincount(source, minlength=nodes).float()
    n = case.features
    random = torch.randn(n, n, generator=generator)
    random /= random.abs().sum(1, keepdim=True)
    problem = CellProblem(
        source=source,
        target=target,
        values=(degree[source] * degree[target]).rsqrt(),
        graph_ptr=ptr,
        weight=KAPPA * (_DIAGONAL * torch.eye(n) + (1 - _DIAGONAL) * random),
        bias=torch.randn(nodes, n, generator=generator),
        cotangent=2 * torch.rand(nodes, n, generator=generator) - 1,
        slope=torch.ones(nodes, n),
        symmetric=not case.chains,
    ).to(torch.float64, torch.device("cpu"))
    solution = _solve(problem, Direction.SOLVE)
    problem.slope.copy_(solution > 0)
    return problem, {
        Direction.SOLVE: solution,
        Direction.ADJOINT: _solve(problem, Direction.ADJOINT),
    }


def _solve(problem: CellProblem, direction: Direction) -> Tensor:
    """The answer to rounding."""
    x = torch.zeros_like(problem.bias)
    for _ in range(MAX_STEPS):
        new = problem.evaluate(direction, x)
        if torch.equal(new, x):
            break
        x = new
    return x


def _sizes(case: CellCase, generator: torch.Generator) -> list[int]:
    if case.chains or case.graphs == 1:
        return [case.nodes] * case.graphs
    low, high = max(1, 3 * case.nodes // 4), 5 * case.nodes // 4
    drawn: list[int] = torch.randint(low, high + 1, (case.graphs,), generator=generator).tolist()
    return drawn


def _chain(size: int) -> Tensor:
    """Entries of A + I of a directed chain, [2, 2 size - 1]."""
    nodes = torch.arange(size)
    return _sorted(torch.cat([torch.stack([nodes[:-1], nodes[1:]]), nodes.expand(2, -1)], 1))


def _random_graph(size: int, generator: torch.Generator) -> Tensor:
    """Entries of A + I of an undirected graph, each once, [2, nnz]."""
    edges = torch.randint(size, (2, _EDGES_PER_NODE * size), generator=generator)
    nodes = torch.arange(size).expand(2, -1)
    return _sorted(torch.cat([edges, edges.flip(0), nodes], 1))


def _sorted(index: Tensor) -> Tensor:
    return torch.unique(index, dim=1)
