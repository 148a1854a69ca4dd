"""Small matrices per sample, in float64 and in elementwise operations only.

Elementwise operations round each number by itself, so these sums have the same bits whatever else
is in the batch, on every device; batched matrix products do not promise that.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension, in an order that depends on its size alone."""
    while x.shape[-1] > 1:
        size = x.shape[-1]
        half = size // 2
        folded = x[..., :half] + x[..., size - half :]
        x = torch.cat((folded, x[..., half : half + 1]), dim=-1) if size % 2 else folded
    return x[..., 0]


def summed_size(size: int, known: int) -> int:
    """How many of `size` terms `tree_sum` must be given where all from `known` on are zero.

    The sum has the same bits then: folding only adds zeros to the first terms until half of them
    are fewer than `known`.
    """
    while size // 2 >= max(1, known):
        size -= size // 2
    return size


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix · x for matrix [batch, n, m] and x [batch, m]."""
    return tree_sum(matrix * x[:, None, :])


def place(x: Tensor, index: Tensor, value: Tensor, where: Tensor) -> Tensor:
    """x [batch, n, ...] with x[b, index[b]] = value[b] for the samples in `where` [batch] bool."""
    samples = torch.arange(len(x), device=x.device)
    mask = where.reshape(-1, *(1 for _ in x.shape[2:]))
    placed = x.clone()
    placed[samples, index] = torch.where(mask, value, x[samples, index])
    return placed


def grow_inverse(
    inverse: Tensor, index: Tensor, column: Tensor, diagonal: Tensor, where: Tensor
) -> Tensor:
    """The inverse of a triangular matrix that receives one more column.

        [[R, c], [0, ρ]]⁻¹ = [[R⁻¹, −R⁻¹ c / ρ], [0, 1 / ρ]]

    Rows and columns may be numbered in any order, as only the order in which they came makes R
    triangular; those that hold nothing are zero. Zeroing a row and a column drops them.

    Args:
        inverse: R⁻¹, [batch, n, n].
        index: number of the new row and column, [batch] int64.
        column: c, [batch, n], zero at `index`.
        diagonal: ρ, [batch].
        where: samples whose matrix grows, [batch] bool.
    """
    new = apply(inverse, column) / -diagonal[:, None]
    new = place(new, index, 1.0 / diagonal, where)
    return place(inverse.mT, index, new, where).mT
