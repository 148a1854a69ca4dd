"""The Jacobian-free gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient, VectorJacobianProduct
from deq_kernels.inverse import InverseJacobian


@dataclass(frozen=True, kw_only=True)
class JacobianFree(AdjointGradient):
    """w = ℓ: backpropagation through one application of f (Fung et al. 2021, JFB).

    Equals `Neumann(steps=1, damping=1)` and, at an exact fixed point, `Unrolled(steps=1,
    damping=1)`. No product with J.
    """

    needs_vjp: ClassVar[bool] = False

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w = ℓ."""
        return cotangent
