"""SHINE, refined where its residual asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient
from deq_kernels.gradients.scaling import scale_of
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.gradients.seeded_krylov import SeededKrylov
from deq_kernels.gradients.shine import shine_estimate
from deq_kernels.gradients.watch import report
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_callback, check_count, check_number
from deq_kernels.solvers import Solution
from deq_kernels.solvers.machinery.precision import visible_rtol


@dataclass(frozen=True, kw_only=True)
class Adaptive(AdjointGradient):
    """w with ‖ℓ + Jᵀw − w‖₂ ≤ tolerance · ‖ℓ‖₂ in every sample, from SHINE's w where it suffices.

    One VJP measures the residual of w₀ = −Hᵀ ℓ. Samples within the tolerance keep w₀, bit for bit.
    The others are refined by a Krylov method with −Hᵀ as its preconditioner on the right, each step
    one VJP: w is what has the smallest residual among the combinations of w₀ and all directions
    since (`SeededKrylov`). It cannot be worse than w = 0, however bad H is; a sample for which −Hᵀ
    yields something that is not finite goes on without it.

    What the tolerance says of the error: with J at the solution that the forward pass returned,
    and w* solving the equation, (I − Jᵀ)(w* − w) = ℓ + Jᵀw − w, so

        ‖w − w*‖ ≤ tolerance · ‖ℓ‖ / σ_min(I − J),    ‖w − w*‖ / ‖w*‖ ≤ tolerance · κ(I − J),

    provided I − J is invertible; σ_min is its smallest singular value, κ its condition number. If
    f is a contraction near z*, ‖J‖₂ ≤ L < 1, these are at most tolerance · ‖ℓ‖ / (1 − L) and
    tolerance · (1 + L) / (1 − L). The parameter gradient (∂f/∂θ)ᵀ w is off by at most ‖∂f/∂θ‖₂
    times the first. The error of the forward solve comes on top.

    Room for two vectors of the state's size per VJP is reserved, in float32 for states of 16 bits.

    Args:
        tolerance: see above; above 0 and below 1, where w = 0 would do. At least the unit of the
            precision that f was recorded in is used.
        max_steps: most VJPs in one backward pass, at least 1. A sample that needs more returns its
            best w. In 16 bits rounding alone may keep residuals above the tolerance; such a sample
            stalls.
        on_solve: called in every backward pass with a `Solution`: z is w as [B, d], `residual` the
            achieved ‖ℓ + Jᵀw − w‖₂ / ‖ℓ‖₂, `status` whether the tolerance was met, `steps` the
            VJPs that the sample took, 1 for one that kept w₀; `trace` begins with the residual of
            w₀. A sample where ℓ or J is not finite has diverged: its w is ℓ, as in `JacobianFree`,
            and its residual NaN.

    Raises:
        ValueError: an option is out of its range.
    """

    tolerance: float = 1e-3
    max_steps: int = 40
    on_solve: Callable[[Solution], None] | None = None

    needs_inverse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_number("tolerance", self.tolerance, lambda x: 0 < x < 1, "above 0 and below 1")
        check_count("max_steps", self.max_steps)
        check_callback("on_solve", self.on_solve)

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w within the tolerance."""
        estimate = shine_estimate(inverse, "Adaptive")
        scale = scale_of(cotangent)
        scaled = cotangent / scale
        tolerance = visible_rtol(self.tolerance, scaled.dtype, scaled.device.type)
        solver = SeededKrylov(
            max_steps=self.max_steps,
            tolerance=tolerance,
            cotangent=scaled,
            estimate=estimate,
        )
        solution = solver(vjp, estimate(scaled), keep_inverse=False)
        assert isinstance(solution.z, Tensor)
        w = solution.z * scale
        solution = replace(solution, z=w, rtol=tolerance, atol=0.0)
        if self.on_solve is not None:
            self.on_solve(solution)
        report(solution)
        return w
