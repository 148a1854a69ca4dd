"""Powers of two that keep a linear equation's squares in range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scale_of(cotangent: Tensor) -> Tensor:
    """c, a power of two per sample, with max |cotangent| / c in [1/2, 1), [batch, 1].

    1 for zeros and for what is not finite. Dividing and multiplying a state by it rounds nothing,
    as long as no entry becomes subnormal.
    """
    ones = cotangent.new_ones((len(cotangent), 1))
    if cotangent.numel() == 0:
        return ones
    largest = cotangent.abs().amax(dim=1, keepdim=True).double()
    exponent = torch.frexp(torch.where(largest.isfinite(), largest, 0.0)).exponent
    # 2^e and 2^-e themselves must be representable in the dtype.
    limit = -math.frexp(torch.finfo(cotangent.dtype).tiny)[1]
    return torch.ldexp(ones, exponent.clamp(-limit, limit))
