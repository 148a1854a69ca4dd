"""The rank-sized table of one sample, as csrc/algebra/gmres.h lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Number(IntEnum):
    """The first entries of a table."""

    SCALE = 0
    """t, a power of two."""
    START_NORM = 1
    """‖w₀‖."""
    REMAINDER = 2
    """The last entry of the rotated ‖r₀‖ e₁, which is the predicted residual but for its sign."""
    PENDING = 3
    """1 from an image's first projection to its second, else 0."""


class Vector(IntEnum):
    """The vectors that follow, of one entry per column each."""

    COSINE = 0
    SINE = 1
    ALONG_START = 2
    """⟨v_j, w₀⟩."""
    SOLUTION = 3
    """y, the minimiser being w₀ + Σ y_j v_j."""
    COLUMN = 4
    """The newest column of R."""


def table_size(columns: int) -> int:
    """Entries of a table for cycles of that many columns; R⁻¹ comes last."""
    return len(Number) + columns * (len(Vector) + columns)


@dataclass(frozen=True, slots=True)
class Table:
    """Views of the tables of some samples."""

    numbers: Tensor
    """[samples, len(Number)]"""
    vectors: Tensor
    """[samples, len(Vector), columns]"""
    inverse: Tensor
    """R⁻¹, upper triangular, [samples, columns, columns]"""

    @classmethod
    def of(cls, algebra: Tensor, columns: int) -> Table:
        """The parts of `algebra` [samples, table_size(columns)]."""
        sizes = (len(Number), len(Vector) * columns, columns * columns)
        numbers, vectors, inverse = algebra.split(sizes, dim=1)
        return cls(
            numbers,
            vectors.unflatten(1, (len(Vector), columns)),
            inverse.unflatten(1, (columns, columns)),
        )
