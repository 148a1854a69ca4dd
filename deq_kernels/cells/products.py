"""Products with the sparse matrix and the weight, differentiable as often as wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deq_kernels.cells.iteration import LinearMap, take_steps
from deq_kernels.cells.pattern import Pattern
from deq_kernels.ops.dtypes import accumulate_dtype


def affine(
    x: Tensor,
    weight: Tensor,
    pattern: Pattern | None,
    values: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """S x Vᵀ + b, [N, n], in one step of the op.

    Args:
        x: [N, n].
        weight: V.
        pattern: the places of S; None for the identity.
        values: those of S.
        bias: b, [N, n].
    """
    result: Tensor = _Affine.apply(x, weight, pattern, values, bias)
    return result


def spread(x: Tensor, pattern: Pattern | None, values: Tensor | None) -> Tensor:
    """S x, [N, n]; x itself without an S."""
    if pattern is None or values is None:
        return x
    result: Tensor = _Spread.apply(x, pattern, values)
    return result


def at_entries(x: Tensor, y: Tensor, pattern: Pattern) -> Tensor:
    """⟨x_i, y_j⟩ at each place (i, j) of S, [nnz]: the derivative of ⟨x, S y⟩ by S's values."""
    accum = accumulate_dtype(x.dtype)
    one = x.index_select(0, pattern.rows.row).to(accum)
    other = y.index_select(0, pattern.rows.col).to(accum)
    return (one * other).sum(1).to(x.dtype)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pattern: Pattern, values: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(x, values)
        if not len(values):
            return torch.zeros_like(x)
        # Sums of weighted rows, without a copy of a row per entry.
        return functional.embedding_bag(
            pattern.rows.col,
            x.contiguous(),
            pattern.rows.crow,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        of_x, _, of_values = ctx.needs_input_grad
        return (
            spread(cotangent, pattern.transposed, pattern.transpose(values)) if of_x else None,
            None,
            at_entries(cotangent, x, pattern) if of_values else None,
        )


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        pattern: Pattern | None,
        values: Tensor | None,
        bias: Tensor,
    ) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(x, weight, values)
        return take_steps(LinearMap(weight, pattern, values), bias, x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values = ctx.saved_tensors
        pattern: Pattern | None = ctx.pattern
        of_x, of_weight, _, of_values, of_bias = ctx.needs_input_grad
        return (
            transposed_product(cotangent, weight, pattern, values) if of_x else None,
            weight_product(cotangent, x, pattern, values) if of_weight else None,
            None,
            values_product(cotangent, weight, x, pattern) if of_values else None,
            cotangent if of_bias else None,
        )


def transposed_product(
    w: Tensor, weight: Tensor, pattern: Pattern | None, values: Tensor | None
) -> Tensor:
    """Sᵀ w V, what `affine` hands back to x."""
    if pattern is not None and values is not None:
        pattern, values = pattern.transposed, pattern.transpose(values)
    return affine(w, weight.t(), pattern, values, torch.zeros_like(w))


def weight_product(w: Tensor, x: Tensor, pattern: Pattern | None, values: Tensor | None) -> Tensor:
    """∂⟨w, S x Vᵀ⟩/∂V = wᵀ S x, [n, n]."""
    return w.t() @ spread(x, pattern, values)


def values_product(w: Tensor, weight: Tensor, x: Tensor, pattern: Pattern | None) -> Tensor | None:
    """∂⟨w, S x Vᵀ⟩/∂S at S's places: ⟨(w V)_i, x_j⟩, [nnz]; None without an S."""
    return None if pattern is None else at_entries(w @ weight, x, pattern)
