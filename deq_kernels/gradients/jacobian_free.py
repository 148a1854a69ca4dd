"""The Jacobian-free gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient
from deq_kernels.gradients.refinement import check_refine, refine
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.gradients.structured import KnownJacobian
from deq_kernels.inverse import InverseJacobian


@dataclass(frozen=True, kw_only=True)
class JacobianFree(AdjointGradient):
    """w = ℓ: backpropagation through one application of f (Fung et al. 2021, JFB).

    Equals `Neumann(steps=1, damping=1)` and, at an exact fixed point, `Unrolled(steps=1,
    damping=1)`. No product with J.

    Args:
        refine: n Broyden steps on w = Jᵀ w + ℓ from there, with H₀ = −I (SHINE, section 2.1 and
            table E.2); n VJPs.

    Raises:
        ValueError: `refine` is out of its range.
    """

    refine: int = 0

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_refine(self.refine)

    @property
    def needs_vjp(self) -> bool:
        """Whether steps are taken."""
        return self.refine > 0

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w = ℓ, or what the steps make of it."""
        if not self.refine:
            return cotangent
        return refine(vjp, cotangent, cotangent, self.refine)

    @property
    def takes_structured(self) -> bool:
        """Whether no steps are taken."""
        return not self.refine

    def structured_adjoint(self, cotangent: Tensor, jacobian: KnownJacobian) -> Tensor:
        """w = ℓ."""
        return jacobian.first_derivatives_only(cotangent, cotangent, "JacobianFree")
