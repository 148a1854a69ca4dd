"""A given number of Broyden steps on the adjoint equation, from a start and an inverse of choice.

Let r(w) = Jᵀw + ℓ − w, and M an estimate of (Jᵀ − I)⁻¹. Broyden's method seeded with H₀ = M is
Broyden's method with H₀ = −I on r̃ = −M r, step for step: if H = −K M, then with ỹ = −M y

    H + (s − H y) sᵀH / ⟨s, H y⟩ = −(K + (s − K ỹ) sᵀK / ⟨s, K ỹ⟩) M   and   −H r = −K r̃,

so that H = −K M holds at every step if it holds at the first, where K₀ = −I and H₀ = M. (Good
Broyden does not see a linear change of the residual.) A seeded step is thus an ordinary one on a
residual that M was applied to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.gradients.scaling import scale_of
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.options import LARGEST_COUNT, check_option
from deq_kernels.solvers import Broyden
from deq_kernels.solvers.machinery.vectors import norm


def refine(
    vjp: VectorJacobianProduct,
    cotangent: Tensor,
    start: Tensor | None,
    steps: int,
    *,
    seed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """w after `steps` Broyden steps on w = Jᵀw + ℓ, one VJP each.

    The residual at the last w would take one more VJP and is not computed. Instead that last step
    is only trusted where it starts from the smallest residual seen; other samples return the
    iterate that had it, and so do those whose last step is not finite.

    Args:
        vjp: w ↦ Jᵀw, [B, d] to [B, d].
        cotangent: ℓ, [B, d].
        start: w₀, [B, d]; None for 0, whose residual ℓ takes no VJP.
        steps: n, at least 1.
        seed: x ↦ M x, the initial inverse; None for −x. Residuals are measured after M.
    """
    scale = scale_of(cotangent)
    scaled = cotangent / scale
    # 0 · ℓ is NaN where ℓ is not finite, and so is w then.
    begin = 0 * scaled if start is None else start / scale
    taken = 0
    smallest: Tensor | None = None
    trusted: Tensor | None = None

    def residual_map(w: Tensor) -> Tensor:
        nonlocal taken, smallest, trusted
        if taken == steps:
            # A residual of zero makes the solver return this w; NaN, the best one before.
            assert trusted is not None
            return torch.where(trusted[:, None], w, torch.nan)
        taken += 1
        at_zero = taken == 1 and start is None
        residual = scaled if at_zero else vjp(w) + scaled - w
        if seed is not None:
            residual = -seed(residual)
        size = norm(residual)
        smallest = size if smallest is None else torch.fmin(smallest, size)
        trusted = size <= smallest
        return w + residual

    # The tolerance is met by a residual of zero only.
    solver = Broyden(max_steps=steps + 1, rtol=0.0, atol=0.0, stall_steps=None)
    solution = solver(residual_map, begin, keep_inverse=False)
    assert isinstance(solution.z, Tensor)
    return solution.z * scale


def check_refine(refine: int) -> None:
    """Raise ValueError unless `refine` is a number of steps, or none."""
    valid = isinstance(refine, int) and not isinstance(refine, bool)
    holds = valid and 0 <= refine < LARGEST_COUNT
    check_option("refine", refine, holds, f"a whole number, at least 0 and below {LARGEST_COUNT}")
