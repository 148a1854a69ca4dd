"""The unrolling-based phantom gradient of a structured cell."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.cells.pattern import Pattern
from deq_kernels.cells.products import affine
from deq_kernels.gradients import Unrolled
from deq_kernels.ops.cells import Activation, value


def unroll(
    gradient: Unrolled,
    activation: Activation,
    z_star: Tensor,
    weight: Tensor,
    pattern: Pattern | None,
    values: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """h after `steps` times h ← λ φ(S h Vᵀ + b) + (1 − λ) h from z*, all of them recorded.

    Each step is one call of the op and one activation forward, and one call of the op backward.

    Args:
        gradient: k, λ and who is told of the states (PG, equation 16).
        activation: φ.
        z_star: the solution, [N, n], detached.
        weight: V.
        pattern: the places of S; None for the identity.
        values: those of S.
        bias: b, [N, n].
    """
    h = gradient.attach(
        lambda h: value(activation, affine(h, weight, pattern, values, bias)), z_star, None
    )
    # A copy, so that the caller may change the output in place.
    return h.clone()
