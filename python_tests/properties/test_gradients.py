"""Every estimator on problems of any shape, layout, dtype and scale, for losses of any scale."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deq_kernels as dk
from python_tests.properties.cases import TOLERANCE, Contraction, contractions, laid_out

ESTIMATORS = {
    "Implicit": lambda rtol: dk.Implicit(solver=dk.Broyden(max_steps=60, rtol=rtol)),
    "Implicit by GMRES": lambda rtol: dk.Implicit(solver=dk.GMRES(max_steps=60, rtol=rtol)),
    "Adaptive": lambda rtol: dk.Adaptive(tolerance=rtol),
    "JacobianFree": lambda rtol: dk.JacobianFree(),
    "JacobianFree refined": lambda rtol: dk.JacobianFree(refine=3),
    "Limited": lambda rtol: dk.Limited(steps=3),
    "Neumann": lambda rtol: dk.Neumann(steps=5, damping=0.5),
    "Shine": lambda rtol: dk.Shine(fallback=1.3),
    "Shine refined": lambda rtol: dk.Shine(refine=2),
    "Unrolled": lambda rtol: dk.Unrolled(steps=5, damping=0.5),
}
EXACT = ("Implicit", "Implicit by GMRES", "Adaptive")


def gradient_of(name: str, problem: Contraction, cotangent: Tensor) -> Tensor:
    """The estimate of ∂⟨cotangent, z*⟩/∂(s b), which is w."""
    rtol = TOLERANCE[cotangent.dtype]
    bias = (problem.bias * 2.0**problem.exponent).requires_grad_()
    without = problem.with_bias(torch.zeros_like(problem.bias))
    layer = dk.DEQ(
        lambda z, b: without(z) + b,
        solver=dk.Broyden(max_steps=60, rtol=rtol),
        gradient=ESTIMATORS[name](rtol),
    )
    z = layer(torch.zeros_like(bias), bias)
    (w,) = torch.autograd.grad(z, bias, cotangent)
    return w


@given(
    contractions(),
    st.sampled_from(sorted(ESTIMATORS)),
    st.sampled_from((0, -90, 90)),
    st.sampled_from(("dense", "transposed", "every other column")),
    st.integers(0, 2**32 - 1),
)
def test_gradients_are_finite_linear_and_right(
    problem: Contraction, name: str, loss_exponent: int, layout: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = problem.bias.dtype
    cotangent = torch.randn(problem.bias.shape, generator=generator).to(dtype)
    w = gradient_of(name, problem, laid_out(cotangent, layout))
    assert w.shape == cotangent.shape
    assert w.isfinite().all()
    if dtype != torch.float16 and problem.exponent == 0:
        # A loss that is scaled by a power of two has a gradient that is.
        scaled = gradient_of(name, problem, cotangent * 2.0**loss_exponent)
        assert torch.equal(scaled, w * 2.0**loss_exponent)
    if name in EXACT and problem.affine:
        # w = Jᵀ w + ℓ, J mixing z by `weight` and `shift`.
        exact_w, weight = w.double(), problem.weight.double()
        product = (weight * exact_w).roll(-problem.shift, dims=1)
        residual = (product + cotangent.double() - exact_w).norm(dim=1)
        tolerance = 2 * TOLERANCE[dtype] + 16 * torch.finfo(dtype).eps
        assert (residual <= tolerance * exact_w.norm(dim=1)).all()
