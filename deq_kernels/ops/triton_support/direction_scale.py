"""The power of two that a history is stored with; as in csrc/algebra/direction_scale.h."""

from __future__ import annotations

import triton
import triton.language as tl

# Of a float64: where its exponent begins, and the exponent of 1.
MANTISSA_BITS = tl.constexpr(52)
EXPONENT_OF_1 = tl.constexpr(1023)
EXPONENTS = tl.constexpr(0x7FF)


@triton.jit
def direction_exponent(
    residual: tl.tensor,  # its norm
    dim: tl.tensor,
    least: tl.tensor,
    most: tl.tensor,
    most_exponent: tl.tensor,
) -> tl.tensor:
    """The exponent of the scale of a history that begins with this residual: 0 in range."""
    mean = residual / tl.sqrt(tl.full((), tl.maximum(dim, 1), tl.float64))
    bits = mean.to(tl.int64, bitcast=True)
    exponent = -((bits >> MANTISSA_BITS) & EXPONENTS) + EXPONENT_OF_1 - 1
    exponent = tl.maximum(tl.minimum(exponent, most_exponent), -most_exponent)
    return tl.where((mean >= least) & (mean <= most), 0, exponent)


@triton.jit
def power_of_two(exponent: tl.tensor) -> tl.tensor:
    """2^exponent in float64."""
    bits = (exponent.to(tl.int64) + EXPONENT_OF_1) << MANTISSA_BITS
    return bits.to(tl.float64, bitcast=True)
