"""The implicit gradient with a limited number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient
from deq_kernels.gradients.refinement import refine
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_count


@dataclass(frozen=True, kw_only=True)
class Limited(AdjointGradient):
    """n Broyden steps on w = Jᵀ w + ℓ from w = 0 with H₀ = −I, whatever residual is left.

    The "limited backprop" that SHINE compares itself with (SHINE, figure 3 and table E.2). The
    residual at 0 is ℓ and takes no product, so the n steps take n − 1 VJPs; n = 1 is
    `JacobianFree`. Use `Implicit` to solve to a tolerance.

    Args:
        steps: n, at least 1.

    Raises:
        ValueError: `steps` is out of its range.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_count("steps", self.steps)

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w after `steps` steps."""
        return refine(vjp, cotangent, None, self.steps)
