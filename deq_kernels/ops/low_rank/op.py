"""The op family `low_rank`: products with H = scale · I + Σ_i u_i v_iᵀ, their halves, its growth.

For inverses that are not good Broyden along their own directions: imported U/V pairs, line
searches on another merit, adjoint Broyden, L-BFGS (docs/algebra.md, section 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import registry
from deq_kernels.ops.low_rank import arguments, reference


def _matvec_fake(u: Tensor, v: Tensor, rank: Tensor, x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def _dots_fake(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], rows.shape[1]), dtype=torch.float64)


def _combine_fake(
    rows: Tensor, count: Tensor, coefficients: Tensor, x: Tensor, scale: float
) -> Tensor:
    return torch.empty_like(x)


def _append_fake(u: Tensor, v: Tensor, rank: Tensor, s: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.empty_like(rank, dtype=torch.bool)


_MATVEC = registry.define(
    "low_rank_matvec(Tensor u, Tensor v, Tensor rank, Tensor x, float scale) -> Tensor",
    reference=reference.matvec,
    check=arguments.check_matvec,
    fake=_matvec_fake,
)
_DOTS = registry.define(
    "low_rank_dots(Tensor rows, Tensor count, Tensor x) -> Tensor",
    reference=reference.dots,
    check=arguments.check_dots,
    fake=_dots_fake,
)
_COMBINE = registry.define(
    "low_rank_combine(Tensor rows, Tensor count, Tensor coefficients, Tensor x, float scale)"
    " -> Tensor",
    reference=reference.combine,
    check=arguments.check_combine,
    fake=_combine_fake,
)
_PROJECT_OUT = registry.define(
    "low_rank_project_out_(Tensor rows, Tensor count, Tensor(a!) x) -> Tensor",
    reference=reference.project_out_,
    check=arguments.check_dots,
    fake=_dots_fake,
)
_APPEND = registry.define(
    "low_rank_append_(Tensor(a!) u, Tensor(b!) v, Tensor(c!) rank, Tensor s, Tensor y, "
    "float scale) -> Tensor",
    reference=reference.append_,
    check=arguments.check_append,
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


def _grad_rows(rows: Tensor, count: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Σ_c w_ci x_c for each row i < count, else 0."""
    stored = (torch.arange(rows.shape[1], device=count.device) < count[:, None])[:, :, None]
    grad = torch.einsum("bci,bcd->bid", weights, x.double())
    return torch.where(stored, grad, 0.0).to(rows.dtype)


def _dots_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _dots_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, count, x = ctx.saved_tensors
    grad_rows = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_rows = _grad_rows(rows, count, grad, x)
    if ctx.needs_input_grad[2]:
        grad_x = _COMBINE.call(rows, count, grad.contiguous(), x, 0.0)
    return grad_rows, None, grad_x


def _combine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, count, coefficients, _, ctx.scale = inputs
    ctx.save_for_backward(rows, count, coefficients)


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, count, coefficients = ctx.saved_tensors
    grad_rows = grad_coefficients = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_rows = _grad_rows(rows, count, coefficients, grad)
    if ctx.needs_input_grad[2]:
        grad_coefficients = _DOTS.call(rows, count, grad.contiguous())
    if ctx.needs_input_grad[3]:
        grad_x = ctx.scale * grad
    return grad_rows, None, grad_coefficients, grad_x, None


torch.library.register_autograd(
    "deq_kernels::low_rank_dots",
    _dots_backward,
    setup_context=_dots_setup,
    lib=registry.LIBRARY,
)
torch.library.register_autograd(
    "deq_kernels::low_rank_combine",
    _combine_backward,
    setup_context=_combine_setup,
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


def dots(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    """⟨row_i, x⟩ for i < count, and 0 for the others: the first half of `matvec`.

    Products and sums are taken in float64 whatever the dtypes, so that nothing over- or underflows.
    A sample whose count is zero costs next to nothing.

    Args:
        rows: stored vectors, [batch, capacity, dim], dense rows; in the dtype of x, float32 or
            bfloat16.
        count: valid rows of each sample, [batch] int64.
        x: [batch, columns, dim].

    Returns:
        [batch, columns, capacity] float64. Differentiable in rows and x.
    """
    return _DOTS.call(rows, count, x.contiguous())


def combine(
    rows: Tensor, count: Tensor, coefficients: Tensor, x: Tensor, *, scale: float
) -> Tensor:
    """scale · x + Σ_{i < count} c_i row_i: the second half of `matvec`.

    Summed in float64 and rounded once.

    Args:
        rows: stored vectors, as for `dots`.
        count: valid rows of each sample, [batch] int64.
        coefficients: c, [batch, columns, capacity] float64; those beyond the count are not read.
        x: [batch, columns, dim]. With scale 0 it gives shape and dtype, and is not read.
        scale: see above.

    Returns:
        [batch, columns, dim], dtype of x. Differentiable in rows, coefficients and x.
    """
    return _COMBINE.call(rows, count, coefficients.contiguous(), x.contiguous(), scale)


def project_out_(rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
    """x ← (I − V Vᵀ)² x in place, V the first `count` rows: Gram–Schmidt, done twice.

    Args:
        rows: stored vectors, as for `dots`; orthonormal up to rounding.
        count: valid rows of each sample, [batch] int64.
        x: [batch, columns, dim], contiguous; updated.

    Returns:
        Vᵀ x of the x before, [batch, columns, capacity] float64; 0 beyond the count.
    """
    return _PROJECT_OUT.call(rows, count, x)


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
