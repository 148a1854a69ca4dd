"""Powers of two that keep a linear equation's squares in range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exponent_of(cotangent: Tensor) -> Tensor:
    """e with max |cotangent| · 2^−e in [1/2, 1) per sample, [batch, 1]; 0 for zeros and NaN.

    `torch.ldexp(x, -e)` and `torch.ldexp(x, e)` scale there and back without rounding.
    """
    if cotangent.numel() == 0:
        return torch.zeros((len(cotangent), 1), dtype=torch.int32, device=cotangent.device)
    largest = cotangent.abs().amax(dim=1, keepdim=True).double()
    exponent = torch.frexp(torch.where(largest.isfinite(), largest, 0.0)).exponent
    # 2^e itself must be representable in the dtype.
    limit = -math.frexp(torch.finfo(cotangent.dtype).tiny)[1]
    return exponent.clamp(-limit, limit)
