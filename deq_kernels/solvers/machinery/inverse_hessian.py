"""The limited-memory BFGS inverse, from its pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.inverse import LowRankInverse
from deq_kernels.ops import low_rank
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.solvers.machinery.rank_algebra import apply, grow_inverse, place, summed_size
from deq_kernels.solvers.machinery.vectors import StoredVectors, dot, surely_none

FIRST_ROOM = 64
"""Pairs that there is room for at first; more is made as a solve goes on."""


class InverseHessian:
    """H ≈ B⁻¹ of each sample, by BFGS updates of γ I with its last `history_length` pairs.

    With a = s − H y and ρ = ⟨s, y⟩ > 0 one update is

        H ← H + (a sᵀ + s aᵀ) / ρ − (⟨a, y⟩ / ρ²) s sᵀ.

    The oldest pair is dropped as Liu & Nocedal do: H is what the pairs that are left make of γ I,
    so it stays positive definite and keeps H y = s of the newest pair. Its products need the pairs
    themselves, the rows of S and Y, and rank-sized algebra:

        H x = γ x + Sᵀ c − γ Yᵀ q,   q = R⁻¹ S x,   c = R⁻ᵀ ((D + γ Y Yᵀ) q − γ Y x),

    with R the triangle of ⟨s_i, y_j⟩ for i not younger than j, and D its diagonal. R⁻¹ grows by a
    column with each pair, and loses a row and a column with each pair dropped.

    Source: SHINE, appendix A; Byrd, Nocedal & Schnabel 1994, theorem 2.2, for the compact form.

    Args:
        like: a state [batch, dim], for shape, dtype and device.
        history_length: pairs kept per sample.
        gamma: γ.

    Attributes:
        most: no sample has had more pairs than this; tables are read up to there. The order of sums
            follows it, so it must not depend on the samples: count evaluations, by `expect_pair`,
            which also makes room beyond `FIRST_ROOM`.
    """

    def __init__(self, like: Tensor, history_length: int, gamma: float) -> None:
        batch = len(like)
        self.history_length = history_length
        room = min(history_length, FIRST_ROOM)
        self.most = room
        self.gamma = gamma
        self.dtype = like.dtype
        self.accum = accumulate_dtype(like.dtype)
        # For all steps: fresh memory costs more than what is computed in it.
        self._dotted: Tensor | None = None
        self.rows = StoredVectors(like, 2 * room, self.accum)  # s_0, y_0, s_1, y_1, …

        def table(*shape: int) -> Tensor:
            return torch.zeros((batch, *shape), dtype=torch.float64, device=like.device)

        self.taken = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self.triangle_inverse = table(room, room)  # R⁻¹
        self.diagonal = table(room)  # D
        self.gram_y = table(room, room)  # Y Yᵀ

    @property
    def count(self) -> Tensor:
        """Pairs that each sample holds, [batch] int64."""
        return self.taken.clamp(max=self.history_length)

    @property
    def _known(self) -> int:
        """Pairs that some sample may hold."""
        return min(self.most, self.history_length)

    def expect_pair(self) -> None:
        """Make room for one more pair of each sample, which may come or not."""
        self.most += 1
        room = self.diagonal.shape[1]
        if self._known > room:
            more = min(2 * room, self.history_length) - room
            self.rows.grow(2 * more)
            self._widen(more)

    def _widen(self, more: int) -> None:
        """Tables for as many more pairs."""
        pad = torch.nn.functional.pad
        self.diagonal = pad(self.diagonal, (0, more))
        self.triangle_inverse = pad(self.triangle_inverse, (0, more, 0, more))
        self.gram_y = pad(self.gram_y, (0, more, 0, more))

    def reset_(self, samples: Tensor) -> None:
        """H = γ I for `samples` [batch] bool."""
        if surely_none(samples):
            return
        self.taken.masked_fill_(samples, 0)
        self.diagonal.masked_fill_(samples[:, None], 0.0)
        for table in self._tables():
            table.masked_fill_(samples[:, None, None], 0.0)

    def append_(
        self, s: Tensor, y: Tensor, samples: Tensor, x: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Update H so that H y = s, for `samples` whose ⟨s, y⟩ is positive beyond its rounding.

        Args:
            s: steps, [batch, dim].
            y: changes of the gradient along them, [batch, dim].
            samples: [batch] bool.
            x: [batch, dim], multiplied next: from the same reading of the rows.

        Returns:
            [batch] bool: which samples took the pair; and dots of the rows with x, for `matvec`.
        """
        dotted = y[:, None]
        if x is not None:
            if self._dotted is None:
                self._dotted = x.new_empty((len(x), 2, x.shape[1]))
            dotted = torch.stack((y, x), dim=1, out=self._dotted)
        curvature = dot(s, y)
        size = dot(s, s).sqrt() * dot(y, y).sqrt()
        accepted = samples & (curvature > torch.finfo(self.accum).eps * size)
        accepted &= size.isfinite() & (1.0 / curvature).isfinite()
        slot = self.taken % self.history_length
        triangle_inverse, gram_y = self._tables()
        held = torch.arange(self._known, device=slot.device) == slot[:, None]
        dropped = held & accepted[:, None]
        for table in (triangle_inverse, gram_y):
            table.masked_fill_(dropped[:, :, None] | dropped[:, None, :], 0.0)

        self.rows.put(2 * slot, s, accepted)
        self.rows.put(2 * slot + 1, y, accepted)
        self.taken += accepted
        count = 2 * self.count
        if x is None:  # a sample that takes no pair needs no dots
            count = torch.where(accepted, count, 0)
        dots = low_rank.dots(self._rows(), count, dotted)
        along_s, along_y = dots[:, 0].unflatten(1, (-1, 2)).unbind(dim=2)
        rho = torch.where(accepted, curvature, 1.0)
        older = torch.where(held, 0.0, along_s)
        triangle_inverse.copy_(grow_inverse(triangle_inverse, slot, older, rho, accepted))
        placed = place(gram_y, slot, along_y, accepted).mT
        gram_y.copy_(place(placed, slot, along_y, accepted).mT)
        diagonal = self.diagonal[:, : self._known]
        diagonal.copy_(place(diagonal, slot, rho, accepted))
        return accepted, dots[:, -1]

    def _tables(self) -> tuple[Tensor, Tensor]:
        """R⁻¹ and Y Yᵀ as far as they are filled; views."""
        known = self._known
        return self.triangle_inverse[:, :known, :known], self.gram_y[:, :known, :known]

    def _rows(self) -> Tensor:
        """The rows of S and Y as far as they are filled, [batch, 2 known, dim]; a view."""
        return self.rows.stored[:, : 2 * self._known]

    def matvec(self, x: Tensor, samples: Tensor, dots: Tensor | None = None) -> Tensor:
        """H x of `samples` for x [batch, dim]; γ x for the others.

        Args:
            x: [batch, dim].
            samples: [batch] bool.
            dots: what `append_` returned with x, if nothing was appended since.
        """
        count = torch.where(samples, 2 * self.count, 0)
        rows, right = self._rows(), x[:, None]
        if dots is None:
            dots = low_rank.dots(rows, count, right)[:, 0]
        along_s, along_y = dots.unflatten(1, (-1, 2)).unbind(dim=2)
        coefficients = self._coefficients(along_s, along_y, self._known)[:, None]
        return low_rank.combine(rows, count, coefficients, right, scale=self.gamma)[:, 0]

    def _coefficients(self, along_s: Tensor, along_y: Tensor, size: int) -> Tensor:
        """Coefficients of the rows in H x − γ x, from S x and Y x of the first `size` pairs."""
        triangle_inverse, gram_y = (
            t[:, :size, :size] for t in (self.triangle_inverse, self.gram_y)
        )
        q = apply(triangle_inverse, along_s)
        inner = self.diagonal[:, :size] * q + self.gamma * (apply(gram_y, q) - along_y)
        c = apply(triangle_inverse.mT, inner)
        return torch.stack((c, -self.gamma * q), dim=2).flatten(1)

    def negative(self) -> LowRankInverse:
        """−H, which estimates the inverse Jacobian of a residual that is minus a gradient.

        Two pairs per update: the rows are its right factors, and the left ones are what the
        coefficients of each of their unit vectors combine.
        """
        # How often f was evaluated depends on the slowest sample: sums are those of a full history.
        size = summed_size(self.history_length, self._known)
        self._widen(max(0, size - self.diagonal.shape[1]))
        count, rows = 2 * self.count, self._rows()
        number = rows.shape[1]
        units = torch.eye(number, 2 * size, dtype=torch.float64, device=count.device)
        units = units.unflatten(1, (-1, 2))[:, None].expand(-1, len(count), -1, -1)
        shape = (len(count), number, number)
        coefficients = torch.zeros(shape, dtype=torch.float64, device=count.device)
        for k in range(number):
            known = self._coefficients(units[k, ..., 0], units[k, ..., 1], size)
            coefficients[:, k] = known[:, :number]
        u = low_rank.combine(rows, count, coefficients, torch.empty_like(rows), scale=0.0)
        return LowRankInverse(u.neg_(), rows, count, self.gamma, self.dtype)
