"""The gradient through the solve of a structured cell, whose products with Jᵀ need no autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deq_kernels.cells.iteration import LinearMap, without_autocast
from deq_kernels.cells.map import StructuredMap
from deq_kernels.cells.products import values_product, weight_product
from deq_kernels.gradients.second_derivatives import refuse_derivative
from deq_kernels.gradients.transforms import refuse_batched
from deq_kernels.gradients.watch import Watch
from deq_kernels.ops.cells import NormKind
from deq_kernels.solvers import FixedPoint


@dataclass(frozen=True, slots=True)
class KnownJacobian:
    """w ↦ Jᵀ w of a structured cell at its solution, and what is known of the solve.

    Attributes:
        transposed: the products; differentiable tensors.
        solver: what the forward solve was.
        norm: what its tolerances are of.
        accelerate: whether its steps look back.
        watch: receives the solves; see `DEQ(on_solve=...)`.
    """

    transposed: LinearMap
    solver: FixedPoint
    norm: NormKind
    accelerate: bool
    watch: Watch

    def first_derivatives_only(self, w: Tensor, cotangent: Tensor, name: str) -> Tensor:
        """w, which refuses to be differentiated."""
        if not torch.is_grad_enabled():
            return w
        refusal = (
            f"{name} gives first derivatives only, but its result was differentiated again. Detach "
            "the first gradient, or use Implicit."
        )
        linear = self.transposed
        known = (cotangent, linear.weight, linear.scale, linear.values)
        return refuse_derivative(w, refusal, *(tensor for tensor in known if tensor is not None))


class StructuredEstimator(Protocol):
    """A gradient that finds w from what is known of J."""

    def structured_adjoint(self, cotangent: Tensor, jacobian: KnownJacobian) -> Tensor:
        """w from ℓ = cotangent, [N, n]: differentiable, or refuses to be."""


def attach_structured(
    estimator: StructuredEstimator,
    f: StructuredMap,
    z_star: Tensor,
    solver: FixedPoint,
    watch: Watch,
) -> Tensor:
    """f(z*), [N, n], with its gradient.

    Of z* itself no φ' is known that would be certain to belong to it: where a solve ends early, a
    row that nothing has reached yet is exactly zero, where a loss may have any gradient, while f of
    it is not, and relu has another slope there. What f(z*) and its slopes have in common is the
    place where they were taken.
    """
    y: Tensor = _Attached.apply(*f.tensors, f, z_star, (estimator, solver, watch))
    return y


class _Attached(torch.autograd.Function):
    """y = f(z*) as the solution of y = f(y).

    Backward, for a cotangent ℓ: w = ℓ + Jᵀ w with Jᵀ w = Sᵀ (φ' ⊙ w) V; then with g = φ' ⊙ w:
    ∂b = g, ∂V = gᵀ S y, and ∂S at its places. All of it is made of functions that can be
    differentiated again, and so can y, which they are taken at.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, f, z_star, ctx.found = arguments
        y: Tensor = f.step(z_star)
        ctx.form = f.form
        ctx.save_for_backward(y, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(cotangent)
        y, *tensors = ctx.saved_tensors
        f = StructuredMap.of(ctx.form, *tensors)
        estimator, solver, watch = ctx.found
        with without_autocast(y):
            jacobian = KnownJacobian(f.transposed_jacobian(y), solver, f.norm, f.accelerate, watch)
            w = estimator.structured_adjoint(cotangent, jacobian)
            scale = jacobian.transposed.scale
            g = w if scale is None else scale * w
            products = (
                lambda: g,
                lambda: weight_product(g, y, f.pattern, f.values),
                lambda: values_product(g, f.weight, y, f.pattern),
            )
            wanted = ctx.needs_input_grad[: len(tensors)]
            found = [
                product() if needed else None
                for product, needed in zip(products, wanted, strict=False)
            ]
        return (*found, None, None, None)
