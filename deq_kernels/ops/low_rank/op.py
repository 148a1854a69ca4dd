"""The op family `low_rank`: products with H = scale · I + Σ_i u_i v_iᵀ, and its growth.

For inverses that are not good Broyden along their own directions: imported U/V pairs, line
searches on another merit, adjoint Broyden, L-BFGS (docs/algebra.md, section 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import registry
from deq_kernels.ops.low_rank import reference


def _matvec_fake(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def _append_fake(u: Tensor, v: Tensor, rank: Tensor, s: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.empty_like(rank, dtype=torch.bool)


_MATVEC = registry.define(
    "low_rank_matvec(Tensor u, Tensor v, Tensor rank, Tensor x, float scale) -> Tensor",
    reference=reference.matvec,
    fake=_matvec_fake,
)
_APPEND = registry.define(
    "low_rank_append_(Tensor(a!) u, Tensor(b!) v, Tensor(c!) rank, Tensor s, Tensor y, "
    "float scale) -> Tensor",
    reference=reference.append_,
    fake=_append_fake,
)


def _matvec_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, v, rank, x, ctx.scale = inputs
    ctx.save_for_backward(u, v, rank, x)


def _matvec_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    u, v, rank, x = ctx.saved_tensors
    grad = grad.contiguous()
    grad_u = grad_v = grad_x = None
    if ctx.needs_input_grad[3]:
        grad_x = _MATVEC.call(v, u, rank, grad, ctx.scale)
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        stored = (torch.arange(u.shape[1], device=rank.device) < rank[:, None])[:, :, None]
        u_rows = torch.where(stored, u, 0.0).to(x.dtype)
        v_rows = torch.where(stored, v, 0.0).to(x.dtype)
        grad_u = torch.einsum("bid,bcd,bce->bie", v_rows, x, grad).to(u.dtype) * stored
        grad_v = torch.einsum("bid,bcd,bce->bie", u_rows, grad, x).to(v.dtype) * stored
    return grad_u, grad_v, None, grad_x, None


torch.library.register_autograd(
    "deq_kernels::low_rank_matvec",
    _matvec_backward,
    setup_context=_matvec_setup,
    lib=registry.LIBRARY,
)


def matvec(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, *, scale: float = -1.0) -> Tensor:
    """H x = scale · x + Σ_{i < rank} u_i ⟨v_i, x⟩.

    Args:
        u: left factors, [batch, history_length, dim], dense rows.
        v: right factors, same shape and dtype.
        rank: valid rows of each sample, [batch] int64.
        x: right-hand sides, [batch, columns, dim], in the state's dtype.
        scale: H₀ = scale · I. A seeded product is had as for `broyden.matvec`.

    Returns:
        [batch, columns, dim], dtype of x. Differentiable in u, v and x.
    """
    return _MATVEC.call(u, v, rank, x.contiguous(), scale)


def rmatvec(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, *, scale: float = -1.0) -> Tensor:
    """Hᵀ x = scale · x + Σ_{i < rank} v_i ⟨u_i, x⟩; arguments as for `matvec`."""
    return _MATVEC.call(v, u, rank, x.contiguous(), scale)


def append_(
    u: Tensor, v: Tensor, rank: Tensor, s: Tensor, y: Tensor, *, scale: float = -1.0
) -> Tensor:
    """Sherman–Morrison append: the rank-one update after which H y = s, in place.

    v = Hᵀ s and u = (s − H y) / ⟨v, y⟩ go to row `rank` of each sample. A sample refuses the pair
    when its history is full, or when ⟨v, y⟩ vanishes against the terms it is made of.

    Args:
        u: left factors, [batch, history_length, dim], dense rows; updated.
        v: right factors, same shape and dtype; updated.
        rank: valid rows of each sample, [batch] int64; updated.
        s: steps, [batch, dim].
        y: changes of the residual along them, [batch, dim].
        scale: H₀ = scale · I.

    Returns:
        [batch] bool: which samples took the pair.
    """
    return _APPEND.call(u, v, rank, s.contiguous(), y.contiguous(), scale)
