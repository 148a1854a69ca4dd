"""SHINE: the forward solver's inverse, shared with the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient, VectorJacobianProduct
from deq_kernels.inverse import InverseJacobian


@dataclass(frozen=True, kw_only=True)
class Shine(AdjointGradient):
    """w = −Hᵀ ℓ with H ≈ (J − I)⁻¹ from the forward solve (SHINE, equation 4). No VJP.

    Args:
        fallback: a sample whose ‖w‖₂ exceeds fallback · ‖ℓ‖₂, or is not finite, uses the
            Jacobian-free w = ℓ instead (SHINE, section 3, with 1.3); None never falls back.
    """

    fallback: float | None = None

    needs_vjp: ClassVar[bool] = False
    needs_inverse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.fallback is not None and not 0 < self.fallback < float("inf"):
            raise ValueError(
                f"fallback must be None, or finite and above 0; got {self.fallback!r}."
            )

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w = −Hᵀ ℓ, or ℓ for samples that fall back."""
        if inverse is None:
            raise ValueError(
                "Shine needs the forward solver's inverse_jacobian; this solver built none. "
                "Use a solver such as Broyden."
            )
        w = inverse.rmatvec(cotangent.contiguous()).neg_()
        if self.fallback is None:
            return w
        bound = self.fallback * cotangent.double().norm(dim=1)
        trusted = w.double().norm(dim=1) <= bound
        return torch.where(trusted[:, None], w, cotangent)
