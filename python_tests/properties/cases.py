"""Fixed-point problems of any shape, layout, dtype and scale, for hypothesis to choose from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DIMS = st.one_of(st.integers(1, 40), st.sampled_from((255, 2047, 2049, 4097, 8193)))
LAYOUTS = ("dense", "transposed", "every other column", "rows apart")

TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 6e-2,
}
"""Relative tolerances that rounding of the state leaves in reach."""


def scale_exponents(dtype: torch.dtype) -> st.SearchStrategy[int]:
    """Powers of two by which a problem can be scaled: 1e-30 to 1e30 where the dtype has them."""
    largest = 7 if dtype == torch.float16 else 100
    return st.sampled_from((0, 0, -largest, largest, -largest // 2, largest // 2))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values [B, d] with other strides."""
    batch, dim = values.shape
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "every other column":
        holder = values.new_full((batch, 2 * dim), torch.nan)
        holder[:, ::2] = values
        return holder[:, ::2]
    if layout == "rows apart":
        holder = values.new_full((batch, dim + 3), torch.nan)
        holder[:, 1 : dim + 1] = values
        return holder[:, 1 : dim + 1]
    return values.contiguous()


@dataclass(frozen=True)
class Contraction:
    """f(z) = s φ(mix(z) / s) + s b, ‖f′‖₂ ≤ 0.6, s a power of two.

    φ is the identity or x / (1 + x²); mix weighs each entry, or the entry before it. Made of sums,
    products and quotients of single entries only, so that a sample's bits depend on nothing else
    and a power of two passes through.

    Attributes:
        weight: [d], entries of at most 0.6.
        bias: b, [B, d]. Some rows are zero, as their solutions are, and some are equal.
        exponent: log₂ s.
        shift: mix(z)_i = weight_i z_{i − shift}; 0 makes the Jacobian symmetric.
        affine: whether φ is the identity.
        layout: strides of f(z).
    """

    weight: Tensor
    bias: Tensor
    exponent: int
    shift: int
    affine: bool
    layout: str

    def __call__(self, z: Tensor) -> Tensor:
        scale = 2.0**self.exponent
        mixed = self.weight * z.roll(self.shift, dims=1)
        if not self.affine:
            x = mixed / scale
            mixed = x / (1.0 + x * x) * scale
        return laid_out(mixed + self.bias * scale, self.layout)

    def sample(self, index: int) -> Contraction:
        """The problem of one sample alone."""
        return replace(self, bias=self.bias[index : index + 1])

    def unscaled(self) -> Contraction:
        """The problem with s = 1."""
        return replace(self, exponent=0)

    def with_bias(self, bias: Tensor) -> Contraction:
        """The problem with another b."""
        return replace(self, bias=bias)

    def exactly(self) -> Contraction:
        """The same map in float64."""
        return replace(self, weight=self.weight.double(), bias=self.bias.double())


@st.composite
def contractions(
    draw: st.DrawFn, *, affine: bool | None = None, symmetric: bool | None = None
) -> Contraction:
    """Problems, of the given kind where it is given."""
    dtype = draw(st.sampled_from(DTYPES))
    batch, dim = draw(st.integers(0, 4)), draw(DIMS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    weight = 1.2 * torch.rand(dim, generator=generator, dtype=torch.float64) - 0.6
    bias = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    for row in range(batch):
        kind = draw(st.sampled_from(("its own", "its own", "zero", "the first")))
        if kind == "zero":
            bias[row] = 0.0
        elif kind == "the first":
            bias[row] = bias[0]
    return Contraction(
        weight=weight.to(dtype),
        bias=bias.to(dtype),
        exponent=draw(scale_exponents(dtype)),
        shift=0 if symmetric else draw(st.integers(0, 2)),
        affine=draw(st.booleans()) if affine is None else affine,
        layout=draw(st.sampled_from(LAYOUTS)),
    )
