"""The scalar part of a Sherman-Morrison append; as in csrc/algebra/sherman_morrison.h.

Source: docs/algebra.md, section 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

DEGENERATE_SHARE = tl.constexpr(1e-8)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def sherman_morrison_scale(
    s_dot_y: tl.tensor,
    s_sq: tl.tensor,
    y_sq: tl.tensor,
    scale: tl.float64,
    u_dot_s: tl.tensor,  # float64 [SLOTS], zero beyond the rank
    v_dot_y: tl.tensor,  # float64 [SLOTS], zero beyond the rank
) -> tl.tensor:
    """1 / <v, y> with v = H^T s, from <v, y> = scale <s, y> + sum_i <u_i, s> <v_i, y>.

    0 where the pair must be refused: <v, y> vanishes against the terms it is made of, or something
    is not finite.
    """
    terms = u_dot_s * v_dot_y
    denominator = scale * s_dot_y + tl.sum(terms, 0)
    magnitude = tl.abs(scale * tl.sqrt(s_sq) * tl.sqrt(y_sq)) + tl.sum(tl.abs(terms), 0)
    usable = (magnitude < INFINITY) & (tl.abs(denominator) > magnitude * DEGENERATE_SHARE)
    inverse = tl.where(usable, 1.0 / tl.where(usable, denominator, 1.0), 0.0)
    return tl.where(tl.abs(inverse) < INFINITY, inverse, 0.0)
