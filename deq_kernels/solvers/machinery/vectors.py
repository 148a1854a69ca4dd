"""Vectors kept per sample, and products with them whose bits no neighbour in the batch changes.

Sums over the state are taken by the op `low_rank`, in float64 and in an order that depends on the
size of the state alone. L-BFGS needs float64 there: dots of small steps would underflow, and the
terms of a combination cancel. A sample whose count is zero costs next to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops import low_rank
from deq_kernels.ops.memory import new_history
from deq_kernels.ops.norms import leaves_range, unit_of


def surely_none(samples: Tensor) -> bool:
    """Whether `samples` [batch] bool is all False, where the host can tell without waiting.

    On other devices than the CPU this is False; what could be skipped is then done under the mask.
    """
    return samples.device.type == "cpu" and not bool(samples.any())


def surely_all(samples: Tensor) -> bool:
    """Whether `samples` [batch] bool is all True, where the host can tell without waiting."""
    return samples.device.type == "cpu" and bool(samples.all())


class StoredVectors:
    """`capacity` vectors for each sample.

    Args:
        like: a state [batch, dim], for the shape and device.
        capacity: vectors per sample.
        dtype: dtype they are stored in, float32 or float64.

    Attributes:
        stored: the vectors, [batch, capacity, dim]; a view.
    """

    def __init__(self, like: Tensor, capacity: int, dtype: torch.dtype) -> None:
        batch, dim = like.shape
        self.capacity = capacity
        # The last row takes what is not to be kept.
        self._data = new_history(like, (batch, capacity + 1, dim), dtype)
        self.stored = self._data[:, :capacity]
        self._samples = torch.arange(batch, device=like.device)

    def grow(self, more: int) -> None:
        """Make room for `more` further vectors of each sample."""
        batch, _, dim = self._data.shape
        before = self.stored
        capacity = self.capacity + more
        self._data = new_history(before, (batch, capacity + 1, dim), before.dtype)
        self.stored = self._data[:, :capacity]
        self.stored[:, : self.capacity] = before
        self.capacity = capacity

    def put(self, slot: Tensor, x: Tensor, where: Tensor) -> None:
        """Row `slot` [batch] of the samples in `where` [batch] bool becomes x [batch, dim]."""
        row = torch.where(where, slot, self.capacity)
        self._data[self._samples, row] = x.to(self._data.dtype)

    def dots(self, count: Tensor, x: Tensor) -> Tensor:
        """⟨row_i, x⟩ for i < count, else 0, [batch, capacity] float64; x is [batch, dim]."""
        return low_rank.dots(self.stored, count, x[:, None])[:, 0]

    def combine(self, count: Tensor, coefficients: Tensor, x: Tensor, scale: float) -> Tensor:
        """scale · x + Σ_{i < count} c_i row_i in the dtype of x, [batch, dim].

        Args:
            count: rows of each sample that take part, [batch] int64.
            coefficients: c, [batch, capacity] float64.
            x: [batch, dim].
            scale: see above.
        """
        c, x = coefficients[:, None], x[:, None]
        return low_rank.combine(self.stored, count, c, x, scale=scale)[:, 0]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ of each sample of x and y [batch, dim], [batch] float64."""
    one = torch.ones(len(x), dtype=torch.int64, device=x.device)
    return low_rank.dots(x.contiguous()[:, None], one, y[:, None])[:, 0, 0]


def norm(x: Tensor) -> Tensor:
    """‖x‖ of each sample of x [batch, dim], [batch] float64.

    Where squares of float64 states leave the range they are taken in a unit, a power of two.
    """
    square = dot(x, x)
    if x.dtype != torch.float64:
        return square.sqrt()
    lost = leaves_range(square)
    if surely_none(lost):
        return square.sqrt()
    unit = torch.where(lost[:, None], unit_of(x), 1.0)
    x = x / unit
    return unit[:, 0] * dot(x, x).sqrt()


def write(target: Tensor, x: Tensor, samples: Tensor) -> None:
    """target [batch, dim] ← x in its dtype, for `samples` [batch] bool."""
    if surely_all(samples):
        target.copy_(x)
    elif not surely_none(samples):
        torch.where(samples[:, None], x.to(target.dtype), target, out=target)
