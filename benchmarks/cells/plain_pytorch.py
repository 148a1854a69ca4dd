"""Graph cells in plain PyTorch, written to be as fast as PyTorch's own operators allow.

Baselines for a user who would not install a package of kernels. All keep the state node-major, so
that rows are contiguous where sparse products gather them, fuse the sum with b into the product,
write into buffers made once, and read one number per step to know when to stop. They differ in how
they multiply with S, Aᵀ of a solve and A of an adjoint. Which is fastest depends on the sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .problem import MAX_STEPS, TOLERANCE, CellProblem, Direction

Apply = Callable[[Tensor, Tensor], object]
"""``apply(x, out)`` writes S x Vᵀ + b into ``out``."""


class PlainLoop:
    """z ← φ(S (c ⊙ z) Vᵀ + b) for all samples, until no entry of any moves by the tolerance."""

    def __init__(
        self,
        apply: Apply,
        shape: torch.Size,
        scale: Tensor | None,
        like: Tensor,
        *,
        read: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self._apply = apply
        self._buffers = [like.new_empty(shape) for _ in range(2)]
        self._work = like.new_empty(shape)
        self._scale = scale
        self._read = read
        self.steps = 0

    def __call__(self) -> Tensor:
        x, new = self._buffers
        work, scale = self._work, self._scale
        x.zero_()
        for self.steps in range(1, MAX_STEPS + 1):
            if scale is None:
                self._apply(x, new)
                torch.relu_(new)
            else:
                self._apply(torch.mul(x, scale, out=work), new)
            change = torch.sub(new, x, out=work).abs_().amax()
            if change.item() < TOLERANCE:
                break
            x, new = new, x
        return self._read(new)


def _parts(
    problem: CellProblem, direction: Direction
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """S in compressed rows, Vᵀ, b and c."""
    solve = direction is Direction.SOLVE
    with warnings.catch_warnings():
        # torch calls compressed rows a beta feature, once per process.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = problem.coo(transposed=solve).to_sparse_csr()
    if solve:
        return matrix, problem.weight.T.contiguous(), problem.bias, None
    return matrix, problem.weight.contiguous(), problem.cotangent, problem.slope


def csr(problem: CellProblem, direction: Direction) -> PlainLoop:
    """(S x) Vᵀ + b: a sparse product, then a dense one."""
    matrix, weight_t, bias, scale = _parts(problem, direction)
    gathered = torch.empty_like(bias)

    def apply(x: Tensor, out: Tensor) -> None:
        torch.mm(matrix, x, out=gathered)
        torch.addmm(bias, gathered, weight_t, out=out)

    return PlainLoop(apply, bias.shape, scale, bias)


def csr_last(problem: CellProblem, direction: Direction) -> PlainLoop:
    """S (x Vᵀ) + b: a dense product, then a sparse one."""
    matrix, weight_t, bias, scale = _parts(problem, direction)
    product = torch.empty_like(bias)

    def apply(x: Tensor, out: Tensor) -> None:
        torch.mm(x, weight_t, out=product)
        torch.addmm(bias, matrix, product, out=out)

    return PlainLoop(apply, bias.shape, scale, bias)


def bag(problem: CellProblem, direction: Direction) -> PlainLoop:
    """(S x) Vᵀ + b with S x as an embedding bag, the fused gather and sum of PyTorch."""
    matrix, weight_t, bias, scale = _parts(problem, direction)
    crow, col, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()

    def apply(x: Tensor, out: Tensor) -> None:
        gathered = functional.embedding_bag(
            col, x, crow, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        torch.addmm(bias, gathered, weight_t, out=out)

    return PlainLoop(apply, bias.shape, scale, bias)


def padded(problem: CellProblem, direction: Direction) -> PlainLoop:
    """The graphs padded to the largest, their matrices dense: batched dense products only."""
    matrix, weight_t, bias, scale = _parts(problem, direction)
    ptr, n = problem.graph_ptr, bias.shape[1]
    sizes = ptr.diff()
    graphs, longest = len(sizes), int(sizes.max())
    graph = torch.arange(graphs, device=ptr.device).repeat_interleave(sizes)
    place = torch.arange(len(graph), device=ptr.device) - ptr[graph]
    row, col = matrix.to_sparse_coo().indices()
    dense = bias.new_zeros(graphs, longest, longest)
    dense[graph[row], place[row], place[col]] = matrix.values()

    def pad(x: Tensor) -> Tensor:
        result = x.new_zeros(graphs, longest, n)
        result[graph, place] = x
        return result

    bias = pad(bias)
    product = torch.empty_like(bias)

    def apply(x: Tensor, out: Tensor) -> None:
        torch.mm(x.view(-1, n), weight_t, out=product.view(-1, n))
        torch.baddbmm(bias, dense, product, out=out)

    return PlainLoop(
        apply,
        bias.shape,
        None if scale is None else pad(scale),
        bias,
        read=lambda x: x[graph, place],
    )
