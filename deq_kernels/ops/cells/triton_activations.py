"""The activations of structured cells as device functions.

Made of what both Triton's compiler and its interpreter have: exp, log and erf.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deq_kernels.ops.cells.activations import Activation

RELU = tl.constexpr(int(Activation.RELU))
TANH = tl.constexpr(int(Activation.TANH))
SIGMOID = tl.constexpr(int(Activation.SIGMOID))
ELU = tl.constexpr(int(Activation.ELU))
SOFTPLUS = tl.constexpr(int(Activation.SOFTPLUS))
GELU = tl.constexpr(int(Activation.GELU))

SQRT_HALF = tl.constexpr(0.5**0.5)


@triton.jit
def _expm1(x: tl.tensor) -> tl.tensor:
    """e^x - 1 for x <= 0, with few roundings near 0: (u - 1) x / log u for u = e^x (Kahan)."""
    u = tl.exp(x)
    near = (u - 1.0) * x / tl.where((u == 1.0) | (u == 0.0), 1.0, tl.log(tl.maximum(u, 1e-30)))
    return tl.where(u == 1.0, x, tl.where(x < -1.0, u - 1.0, near))


@triton.jit
def _log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x) for x in [0, 1], likewise: log(u) x / (u - 1) for u = 1 + x."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * x / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def activate(x: tl.tensor, activation: tl.tensor) -> tl.tensor:
    """φ(x) of each element; NaN stays NaN, so every choice is made by a comparison with it."""
    if activation == RELU:
        x = tl.where(x < 0.0, 0.0, x)
    elif activation == TANH:
        rest = _expm1(-2.0 * tl.abs(x))
        magnitude = -rest / (2.0 + rest)
        x = tl.where(x < 0.0, -magnitude, magnitude)
    elif activation == SIGMOID:
        small = tl.exp(-tl.abs(x))
        x = tl.where(x < 0.0, small, 1.0) / (1.0 + small)
    elif activation == ELU:
        x = tl.where(x > 0.0, x, _expm1(tl.where(x > 0.0, 0.0, x)))
    elif activation == SOFTPLUS:
        x = tl.where(x < 0.0, 0.0, x) + _log1p(tl.exp(-tl.abs(x)))
    elif activation == GELU:
        x = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    return x
