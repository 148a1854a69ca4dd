"""The norms of a sample that the stopping rule judges by; as in csrc/cuda/norms.h."""

from __future__ import annotations

import triton
import triton.language as tl

from deq_kernels.ops.triton_support.direction_scale import (
    EXPONENT_OF_1,
    EXPONENTS,
    MANTISSA_BITS,
    power_of_two,
)
from deq_kernels.ops.triton_support.values import load, square_sum

LEAST_SUM = tl.constexpr(2.0**-900)
INFINITY = tl.constexpr(float("inf"))
LEAST_EXPONENT = tl.constexpr(-1022)


@triton.jit
def unit_of(largest: tl.tensor) -> tl.tensor:
    """The unit in which the largest magnitude, a normal number, lies in [1, 2).

    Subnormal ones keep the unit of the least normal number, in which their squares are in range;
    1 for zero and for what is not finite.
    """
    bits = largest.to(tl.int64, bitcast=True)
    exponent = ((bits >> MANTISSA_BITS) & EXPONENTS) - EXPONENT_OF_1
    usable = (largest > 0.0) & (largest < INFINITY)
    return power_of_two(tl.where(usable, tl.maximum(exponent, LEAST_EXPONENT), 0))


@triton.jit
def step_norms(
    residual_sq: tl.tensor,  # ||f(z) - z||^2 as the tiles have it
    f_sq: tl.tensor,  # ||f(z)||^2
    f_z: tl.tensor,  # [dim]
    z: tl.tensor,  # [dim]
    dim: tl.tensor,
    ACCUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tuple:
    """(sum, unit) of f(z) - z and (sum, unit) of f(z): ||x||^2 as the sum of squares of x / unit.

    The units are 1 unless a sum left the range, which only those of float64 states do; those are
    taken again.
    """
    residual_unit = tl.full((), 1.0, tl.float64)
    f_unit = tl.full((), 1.0, tl.float64)
    if tl.float64 == ACCUM:
        inside_range = (residual_sq >= LEAST_SUM) & (residual_sq < INFINITY)
        inside_range &= (f_sq >= LEAST_SUM) & (f_sq < INFINITY)
        if inside_range == 0:
            largest_r = tl.full((), 0.0, tl.float64)
            largest_f = tl.full((), 0.0, tl.float64)
            for begin in range(0, dim, BLOCK):
                inside = tl.arange(0, BLOCK) < dim - begin
                f = load(f_z + begin, inside, ACCUM, BLOCK)
                r = f - load(z + begin, inside, ACCUM, BLOCK)
                largest_r = tl.maximum(largest_r, tl.max(tl.abs(r), 0))
                largest_f = tl.maximum(largest_f, tl.max(tl.abs(f), 0))
            residual_unit = unit_of(largest_r)
            f_unit = unit_of(largest_f)
            residual_sq = tl.full((), 0.0, tl.float64)
            f_sq = tl.full((), 0.0, tl.float64)
            for begin in range(0, dim, BLOCK):
                inside = tl.arange(0, BLOCK) < dim - begin
                f = load(f_z + begin, inside, ACCUM, BLOCK)
                r = f - load(z + begin, inside, ACCUM, BLOCK)
                residual_sq += square_sum(r / residual_unit)
                f_sq += square_sum(f / f_unit)
    return (residual_sq, residual_unit), (f_sq, f_unit)


@triton.jit
def root(norm: tl.tuple) -> tl.tensor:
    """||x|| from its sum and unit."""
    return norm[1] * tl.sqrt(norm[0])
