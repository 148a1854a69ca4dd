"""What the options of a Broyden step decide per sample; as in csrc/algebra.

Sources: line_search.h and initial_scale.h there, and the Python modules of the same names in
deq_kernels/ops/broyden.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deq_kernels.ops.broyden import initial_scale, line_search

DECREASE = tl.constexpr(line_search.DECREASE)
SHORTEST = tl.constexpr(line_search.SHORTEST)
LONGEST = tl.constexpr(line_search.LONGEST)
LEAST_GAMMA = tl.constexpr(initial_scale.LEAST)
MOST_GAMMA = tl.constexpr(initial_scale.MOST)
CHANGED_SHARE = tl.constexpr(initial_scale.CHANGED_SHARE)
LARGEST = tl.constexpr(1e300)


@triton.jit
def accepted_residual(base: tl.tensor, step: tl.tensor, evaluations: tl.tensor) -> tl.tensor:
    """The largest norm of r(z + a p) accepted; the allowance for growth is summable."""
    n = 1.0 + evaluations.to(tl.float64)
    return (1.0 + 1.0 / (n * n) - step * step * DECREASE) * base


@triton.jit
def shorter_step(base: tl.tensor, step: tl.tensor, residual: tl.tensor) -> tl.tensor:
    """The next step length a: the minimum of a parabola, within bounds."""
    ratio = residual / base
    growth = ratio * ratio
    finite = growth < LARGEST
    minimum = tl.where(finite, step * step / (tl.where(finite, growth, 1.0) + 2.0 * step - 1.0), 0)
    return tl.maximum(step * SHORTEST, tl.minimum(minimum, step * LONGEST))


@triton.jit
def estimated_gamma(
    gamma: tl.tensor,
    step: tl.tensor,
    pi: tl.tensor,  # <p, r>
    norm_sq: tl.tensor,  # ||p||^2
    residual_sq: tl.tensor,  # ||r||^2
) -> tl.tensor:
    """-<s, y> / <y, y> with s = a p and y = r - p / gamma, or gamma where that tells nothing."""
    before = norm_sq / (gamma * gamma)
    change_sq = residual_sq - 2.0 * pi / gamma + before
    # Written so that NaN fails a comparison.
    known = (change_sq > (residual_sq + before) * CHANGED_SHARE) & (change_sq < LARGEST)
    found = -(step * (pi - norm_sq / gamma)) / tl.where(known, change_sq, 1.0)
    known = known & (found > 0.0) & (found < LARGEST)
    return tl.where(known, tl.minimum(tl.maximum(found, LEAST_GAMMA), MOST_GAMMA), gamma)
