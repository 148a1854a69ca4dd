"""SHINE: the forward solver's inverse, shared with the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient
from deq_kernels.gradients.refinement import check_refine, refine
from deq_kernels.gradients.scaling import scale_of
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_positive
from deq_kernels.solvers.machinery.vectors import norm


@dataclass(frozen=True, kw_only=True)
class Shine(AdjointGradient):
    """w = −Hᵀ ℓ with H ≈ (J − I)⁻¹ from the forward solve (SHINE, equation 4). No VJP.

    Args:
        fallback: a sample whose ‖w‖₂ exceeds fallback · ‖ℓ‖₂, or is not finite, uses the
            Jacobian-free w = ℓ instead (SHINE, section 3, with 1.3); None never falls back.
        refine: n Broyden steps on w = Jᵀ w + ℓ from there, the inverse seeded with Hᵀ (SHINE,
            section 2.1, "Transition to the exact Jacobian inverse"); n VJPs, and as many products
            with Hᵀ. A sample that fell back is refined with H₀ = −I, like `JacobianFree`.

    Raises:
        ValueError: an option is out of its range.
    """

    fallback: float | None = None
    refine: int = 0

    needs_inverse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        if self.fallback is not None:
            check_positive("fallback", self.fallback, or_else="None")
        check_refine(self.refine)

    @property
    def needs_vjp(self) -> bool:
        """Whether steps are taken."""
        return self.refine > 0

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w = −Hᵀ ℓ, or ℓ for samples that fall back, or what the steps make of it."""
        estimate = shine_estimate(inverse, "Shine")
        w = estimate(cotangent)
        if self.fallback is not None:
            trusted = (norm(w) <= self.fallback * norm(cotangent))[:, None]  # False for NaN
            w = torch.where(trusted, w, cotangent)
        if not self.refine:
            return w

        def seed(x: Tensor) -> Tensor:
            product = estimate(x)
            return -(product if self.fallback is None else torch.where(trusted, product, x))

        return refine(vjp, cotangent, w, self.refine, seed=seed)


def shine_estimate(inverse: InverseJacobian | None, name: str) -> VectorJacobianProduct:
    """x ↦ −Hᵀ x, [B, d] to [B, d].

    Raises:
        ValueError: there is no H.
    """
    if inverse is None:
        raise ValueError(
            f"{name} needs the forward solver's inverse_jacobian; this solver built none. "
            "Use a solver such as Broyden."
        )

    def estimate(x: Tensor) -> Tensor:
        # The factors of H may be far from 1, and their dots with a loss's cotangent out of range.
        scale = scale_of(x)
        product = inverse.rmatvec((x / scale).contiguous())
        return product.mul_(-scale)

    return estimate
