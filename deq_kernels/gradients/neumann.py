"""The Neumann-series phantom gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells.iteration import take_steps
from deq_kernels.gradients.base import AdjointGradient
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.gradients.structured import KnownJacobian
from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops import damped
from deq_kernels.options import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class Neumann(AdjointGradient):
    """NPG: w ← λ ℓ + λ Jᵀ w + (1 − λ) w, `steps` times from 0 (PG, equation 17).

    Takes steps − 1 VJPs. Tends to the exact gradient as steps grows where (1 − λ) I + λ J is a
    contraction.

    Args:
        steps: k, at least 1.
        damping: λ in (0, 1].

    Raises:
        ValueError: an option is out of its range.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_phantom_options(self.steps, self.damping)

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w after `steps` terms."""
        w = self.damping * cotangent.contiguous()
        norms = torch.empty((len(w), 2), dtype=torch.float64, device=w.device)
        for _ in range(self.steps - 1):
            damped.neumann_step_(vjp(w), cotangent, w, norms, damping=self.damping)
        return w

    @property
    def takes_structured(self) -> bool:
        """All steps are one op."""
        return True

    def structured_adjoint(self, cotangent: Tensor, jacobian: KnownJacobian) -> Tensor:
        """w after `steps` terms."""
        with torch.no_grad():
            # λ ℓ is what the first step makes of 0, without a product.
            w = self.damping * cotangent
            if self.steps > 1:
                w = take_steps(
                    jacobian.transposed, cotangent, w, self.steps - 1, damping=self.damping
                )
        return jacobian.first_derivatives_only(w, cotangent, "Neumann")


def check_phantom_options(steps: int, damping: float) -> None:
    """Raise ValueError unless k ≥ 1 and 0 < λ ≤ 1."""
    check_count("steps", steps)
    check_number("damping", damping, lambda x: 0 < x <= 1, "above 0 and at most 1")
