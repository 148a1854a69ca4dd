"""Estimates of the inverse Jacobian J_r⁻¹ = (J − I)⁻¹ that a solver leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from deq_kernels.ops import broyden, low_rank
from deq_kernels.ops.dtypes import accumulate_dtype


class InverseJacobian(Protocol):
    """What gradients need of an inverse estimate H, per sample."""

    @property
    def rank(self) -> Tensor:
        """Rank of each sample's correction to H₀, [batch] int64."""
        ...

    def matvec(self, x: Tensor) -> Tensor:
        """H x for x [batch, dim] or [batch, columns, dim]."""
        ...

    def rmatvec(self, x: Tensor) -> Tensor:
        """Hᵀ x for x [batch, dim] or [batch, columns, dim]."""
        ...

    def unbind(self) -> tuple[tuple[Tensor, ...], Callable[..., InverseJacobian]]:
        """The tensors H is made of, and a function that makes it of them and holds none."""
        ...


def _columns(x: Tensor, batch: int, dim: int, dtype: torch.dtype) -> Tensor:
    """x as [batch, columns, dim], checked."""
    if x.dim() not in (2, 3) or x.shape[0] != batch or x.shape[-1] != dim:
        raise ValueError(
            f"A product takes x of shape [{batch}, {dim}] or [{batch}, columns, {dim}]; got "
            f"{list(x.shape)}. Flatten each sample's state to one row first."
        )
    if x.dtype != dtype:
        raise TypeError(f"A product takes x in the state's dtype {dtype}; got {x.dtype}.")
    return x if x.dim() == 3 else x[:, None]


@dataclass(frozen=True, slots=True)
class ProductFormInverse:
    """H = (I + u_{r−1} p_{r−1}ᵀ / N_{r−1}) ⋯ (I + u_0 p_0ᵀ / N_0) H₀ with H₀ = −γ I.

    Good Broyden's inverse from one stored direction p_j per step (docs/algebra.md, section 1).

    Attributes:
        directions: p_j, [batch, history_length + 1, dim].
        algebra: rank-sized table, [batch, history_length + 1, history_length + 3] float64; row j
            holds ⟨p_j, p_i⟩ for all i, then step length and weight of factor j.
        count: directions of each sample, one more than its factors, or none, [batch] int64.
        gamma: γ, a number or one per sample, [batch] float64.
        dtype: dtype of the state, and of the vectors multiplied.
    """

    directions: Tensor
    algebra: Tensor
    count: Tensor
    gamma: float | Tensor
    dtype: torch.dtype

    @property
    def rank(self) -> Tensor:
        """Number of factors of each sample, [batch] int64."""
        return (self.count - 1).clamp_(min=0)

    def _product(self, x: Tensor, scale: float, transpose: bool) -> Tensor:
        batch, _, dim = self.directions.shape
        columns = _columns(x, batch, dim, self.dtype)
        product = broyden.matvec(
            self.directions,
            self.algebra,
            self.rank,
            columns,
            scale=scale,
            transpose=transpose,
        )
        return product.reshape(x.shape)

    def matvec(self, x: Tensor, *, seeded: bool = False) -> Tensor:
        """H x for x [batch, dim] or [batch, columns, dim], in the state's dtype.

        With `seeded`, x is M x already, for an initial inverse H₀ = M of the caller's.
        """
        if seeded:
            return self._product(x, 1.0, transpose=False)
        if isinstance(self.gamma, Tensor):
            return self._product(self._initial(x, self.gamma), 1.0, transpose=False)
        return self._product(x, -self.gamma, transpose=False)

    def rmatvec(self, x: Tensor, *, seeded: bool = False) -> Tensor:
        """Hᵀ x for x [batch, dim] or [batch, columns, dim], in the state's dtype.

        With `seeded`, the caller applies Mᵀ to the result, for an initial inverse H₀ = M.
        """
        if seeded:
            return self._product(x, 1.0, transpose=True)
        if isinstance(self.gamma, Tensor):
            return self._initial(self._product(x, 1.0, transpose=True), self.gamma)
        return self._product(x, -self.gamma, transpose=True)

    @staticmethod
    def _initial(x: Tensor, gamma: Tensor) -> Tensor:
        """H₀ x = −γ x with γ per sample."""
        scale = -gamma.reshape(-1, *(1,) * (x.dim() - 1))
        return (x * scale.to(accumulate_dtype(x.dtype))).to(x.dtype)

    def unbind(self) -> tuple[tuple[Tensor, ...], Callable[..., ProductFormInverse]]:
        """The tensors H is made of, and a function that makes it of them and holds none."""
        tensors = (self.directions, self.algebra, self.count)
        if isinstance(self.gamma, Tensor):
            return (*tensors, self.gamma), partial(ProductFormInverse, dtype=self.dtype)
        return tensors, partial(ProductFormInverse, gamma=self.gamma, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class LowRankInverse:
    """H = −γ I + Σ_{i < rank} u_i v_iᵀ.

    Attributes:
        u: left factors, [batch, history_length, dim].
        v: right factors, [batch, history_length, dim].
        rank: valid rows of each sample, [batch] int64.
        gamma: γ.
        dtype: dtype of the vectors multiplied; None for that of the factors.
    """

    u: Tensor
    v: Tensor
    rank: Tensor
    gamma: float = 1.0
    dtype: torch.dtype | None = None

    @classmethod
    def empty(
        cls,
        batch: int,
        history_length: int,
        dim: int,
        *,
        gamma: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> LowRankInverse:
        """H = −γ I with room for `history_length` pairs per sample, on torch's default device.

        Args:
            batch: number of samples.
            history_length: pairs per sample.
            dim: elements per sample.
            gamma: γ.
            dtype: dtype of the factors.
            device: another device.
        """
        shape = (batch, history_length, dim)
        rank = torch.zeros(batch, dtype=torch.int64, device=device)
        u = torch.empty(shape, dtype=dtype, device=device)
        return cls(u, torch.empty_like(u), rank, gamma)

    def matvec(self, x: Tensor) -> Tensor:
        """H x for x [batch, dim] or [batch, columns, dim]."""
        columns = self._columns(x)
        product = low_rank.matvec(self.u, self.v, self.rank, columns, scale=-self.gamma)
        return product.reshape(x.shape)

    def rmatvec(self, x: Tensor) -> Tensor:
        """Hᵀ x for x [batch, dim] or [batch, columns, dim]."""
        columns = self._columns(x)
        product = low_rank.rmatvec(self.u, self.v, self.rank, columns, scale=-self.gamma)
        return product.reshape(x.shape)

    def _columns(self, x: Tensor) -> Tensor:
        return _columns(x, len(self.rank), self.u.shape[-1], self.dtype or self.u.dtype)

    def append_(self, s: Tensor, y: Tensor) -> Tensor:
        """Update H in place so that H y = s; s and y are [batch, dim].

        Returns:
            [batch] bool: False where the history is full or the pair degenerate.

        Raises:
            ValueError: s or y has a wrong shape.
            TypeError: s or y has a wrong dtype.
        """
        for vector in (s, y):
            self._columns(vector)
        return low_rank.append_(self.u, self.v, self.rank, s, y, scale=-self.gamma)

    def unbind(self) -> tuple[tuple[Tensor, ...], Callable[..., LowRankInverse]]:
        """The tensors H is made of, and a function that makes it of them and holds none."""
        tensors = (self.u, self.v, self.rank)
        return tensors, partial(LowRankInverse, gamma=self.gamma, dtype=self.dtype)
