"""The power of two that a history is stored with, which keeps its dots in range.

Dots are sums of products of two directions (for Anderson, two changes). Those of residuals near
1e-30 vanish in float32, and those near 1e+30 overflow. A history therefore stores c p, c a power of
two chosen where it begins; the factors (I + u pᵀ / N) do not depend on c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScaleRange:
    """Root mean squares of a residual that need no scaling, and the largest exponent of a scale.

    Inside the range no bit depends on any of this. The exponent leaves a factor of 2^30 for step
    lengths and γ, so that their products with c are normal numbers.
    """

    least: float
    most: float
    exponent: int

    @classmethod
    def of(cls, history_dtype: torch.dtype, accum_dtype: torch.dtype) -> ScaleRange:
        """The range of a history's dtype, with sums in another.

        float16 has its full digits only between 6e-5 and 65504, and residuals change by orders of
        magnitude after c was chosen.
        """
        least, most = (2.0**-7, 2.0**7) if history_dtype == torch.float16 else (1e-8, 1e8)
        return cls(least, most, 96 if accum_dtype == torch.float32 else 900)


def choose(residual: Tensor, dim: int, scales: ScaleRange) -> Tensor:
    """The scale c of a history that begins where the residual's norm is `residual`, [batch].

    1 in range; otherwise the power of two that brings the root mean square into [1/2, 1), as far as
    the exponent goes.
    """
    mean = residual / math.sqrt(max(1, dim))
    exponent = (-torch.frexp(mean).exponent).clamp(-scales.exponent, scales.exponent)
    inside = (mean >= scales.least) & (mean <= scales.most)
    return torch.ldexp(torch.ones_like(mean), torch.where(inside, 0, exponent))
