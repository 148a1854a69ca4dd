"""The sum-form low-rank inverse in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_counts
from deq_kernels.ops.dtypes import accumulate_dtype

DEGENERATE_SHARE = 1e-8
"""A pair whose ⟨v, y⟩ is below this share of the terms it is made of is refused."""


def _rows(factor: Tensor, rank: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor with its rows beyond each sample's rank set to zero."""
    check_counts(rank, "rank", factor.shape[1])
    stored = torch.arange(factor.shape[1], device=rank.device) < rank[:, None]
    return torch.where(stored[:, :, None], factor.to(dtype), 0.0)


def matvec(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, scale: float) -> Tensor:
    """scale · x + Σ_i u_i ⟨v_i, x⟩ for x [batch, columns, dim]."""
    accum = accumulate_dtype(x.dtype)
    right = x.to(accum)
    dots = torch.einsum("bid,bcd->bci", _rows(v, rank, accum), right)
    return (scale * right + torch.einsum("bci,bid->bcd", dots, _rows(u, rank, accum))).to(x.dtype)


def dots(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    """⟨row_i, x⟩ for i < count, else 0, in float64; x is [batch, columns, dim]."""
    return torch.einsum("bid,bcd->bci", _rows(rows, count, torch.float64), x.double())


def combine(rows: Tensor, count: Tensor, coefficients: Tensor, x: Tensor, scale: float) -> Tensor:
    """scale · x + Σ_{i < count} c_i row_i, summed in float64; with scale 0 x is not read."""
    stored = torch.arange(rows.shape[1], device=count.device) < count[:, None]
    known = torch.where(stored[:, None], coefficients, 0.0)
    total = torch.einsum("bci,bid->bcd", known, _rows(rows, count, torch.float64))
    if scale != 0.0:
        total += scale * x.double()
    return total.to(x.dtype)


def project_out_(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    """x ← (I − V Vᵀ)² x for the first `count` rows V, in place; returns Vᵀ x of the x before."""
    first = dots(rows, count, x)
    # Each time with the opposite sign, which needs no other coefficients than the dots.
    x.copy_(combine(rows, count, first, x, -1.0))
    x.copy_(combine(rows, count, dots(rows, count, x), x, -1.0))
    return first


def append_(u: Tensor, v: Tensor, rank: Tensor, s: Tensor, y: Tensor, scale: float) -> Tensor:
    """Append v = Hᵀs, u = (s − Hy) / ⟨v, y⟩ in place; returns which samples took the pair."""
    accum = accumulate_dtype(s.dtype)
    u_rows, v_rows = _rows(u, rank, accum), _rows(v, rank, accum)
    step, change = s.to(accum), y.to(accum)
    u_dot_s = torch.einsum("bid,bd->bi", u_rows, step).double()
    v_dot_y = torch.einsum("bid,bd->bi", v_rows, change).double()
    own = scale * (step.double() * change.double()).sum(-1)
    terms = u_dot_s * v_dot_y
    denominator = own + terms.sum(-1)
    norms = step.double().norm(dim=-1) * change.double().norm(dim=-1)
    magnitude = abs(scale) * norms + terms.abs().sum(-1)
    usable = magnitude.isfinite() & (denominator.abs() > DEGENERATE_SHARE * magnitude)
    inverse = torch.where(usable, 1.0 / denominator, 0.0)
    appended = usable & inverse.isfinite() & (rank < u.shape[1])

    new_v = scale * step + torch.einsum("bi,bid->bd", u_dot_s.to(accum), v_rows)
    h_y = scale * change + torch.einsum("bi,bid->bd", v_dot_y.to(accum), u_rows)
    new_u = inverse.to(accum)[:, None] * (step - h_y)
    index = appended.nonzero().flatten()
    v[index, rank[index]] = new_v[index].to(v.dtype)
    u[index, rank[index]] = new_u[index].to(u.dtype)
    rank += appended
    return appended
