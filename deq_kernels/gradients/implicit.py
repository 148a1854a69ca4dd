"""The exact gradient by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient, VectorJacobianProduct
from deq_kernels.inverse import InverseJacobian
from deq_kernels.solvers import Broyden, Solution, Solver


@dataclass(frozen=True, kw_only=True)
class Implicit(AdjointGradient):
    """Solves w = Jᵀ w + ℓ with a fixed-point solver, one VJP per step.

    The gradient is exact up to the tolerance of both solves.

    Args:
        solver: solves for w, from ℓ. Its rtol is relative to ‖Jᵀw + ℓ‖₂.
        on_solve: called with the adjoint's `Solution` in every backward pass, for logging its
            status and steps; what a sample that did not converge means is the caller's decision.
    """

    solver: Solver = field(default_factory=lambda: Broyden(max_steps=40, rtol=1e-5))
    on_solve: Callable[[Solution], None] | None = None

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w with w = Jᵀ w + ℓ."""
        solution = self.solver(lambda w: vjp(w) + cotangent, cotangent, keep_inverse=False)
        if self.on_solve is not None:
            self.on_solve(solution)
        assert isinstance(solution.z, Tensor)
        return solution.z
