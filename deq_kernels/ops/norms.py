"""Norms per sample, in float64, of states of any finite magnitude.

Squares of float32 states never leave the range of float64. Those of float64 states do, below 1e-162
and above 1e+154: their norms are taken in a unit, a power of two near the largest entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SUM = 2.0**-900
"""Below it a sum of squares may lack some that vanished; at it, all those that vanished together
are less than its rounding."""


def leaves_range(square: Tensor) -> Tensor:
    """Which sums of squares do not tell the norm: too small, or not finite."""
    return ~((square >= LEAST_SUM) & (square < torch.inf))


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² over the last dimension in float64: no float32 state overflows it."""
    return x.double().square().sum(-1)


def norm(x: Tensor) -> Tensor:
    """‖x‖ over the last dimension in float64: right wherever it is a finite float64 number."""
    if x.dtype != torch.float64:
        return squared_norm(x).sqrt()
    unit = unit_of(x)
    return unit[..., 0] * squared_norm(x / unit).sqrt()


def unit_of(x: Tensor) -> Tensor:
    """The power of two for which the largest |x| / unit lies in [1, 2), [..., 1] float64.

    1 where all of x is zero, and where something is not finite.
    """
    if x.shape[-1] == 0:
        return x.new_ones((*x.shape[:-1], 1), dtype=torch.float64)
    return power_below(x.abs().amax(-1, keepdim=True).double())


def power_below(x: Tensor) -> Tensor:
    """The largest power of two that is at most x ≥ 0, in float64; 1 for 0, infinity and NaN."""
    usable = x.isfinite() & (x > 0)
    exponent = torch.frexp(torch.where(usable, x, 1.0)).exponent - 1
    return torch.ldexp(torch.ones_like(x), exponent)
