"""Autocast, and states of 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.gradients import AdjointGradient
from python_tests.gradients.tanh_layer import TanhCell

HALVES = (torch.bfloat16, torch.float16)
SOLVER = dk.Broyden(max_steps=25, rtol=1e-3)
GRADIENTS = (
    dk.Implicit(solver=dk.Broyden(max_steps=25, rtol=1e-3)),
    dk.Implicit(solver=dk.GMRES(max_steps=25, rtol=1e-3)),
    dk.Implicit(solver=dk.Anderson(max_steps=25, rtol=1e-3)),
    dk.JacobianFree(),
    dk.JacobianFree(refine=3),
    dk.Shine(fallback=3.0),
    dk.Shine(fallback=3.0, refine=3),
    dk.Limited(steps=4),
    dk.Adaptive(tolerance=1e-2),
    dk.Neumann(steps=5),
    dk.Unrolled(steps=5),
)


def name(gradient: dk.Gradient) -> str:
    return type(gradient).__name__


@dataclass(frozen=True, kw_only=True)
class Witness(AdjointGradient):
    """SHINE that keeps what it is given."""

    needs_vjp = False
    needs_inverse = True
    inverses: list[dk.ProductFormInverse] = field(default_factory=list)

    def adjoint(self, cotangent: Tensor, vjp, inverse: dk.InverseJacobian | None) -> Tensor:
        self.inverses.append(inverse)
        return dk.Shine().adjoint(cotangent, vjp, inverse)


def gradient_of(gradient: dk.Gradient, dtype: torch.dtype | None) -> Tensor:
    torch.manual_seed(7)
    cell = TanhCell(24, 0.7, torch.float32)
    x, cotangent = torch.randn(4, 3), torch.randn(4, 24)
    layer = dk.DEQ(cell, solver=SOLVER, gradient=gradient)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        z = layer(torch.zeros(4, 24), x)
    assert z.dtype == torch.float32
    z.backward(cotangent)
    assert cell.weight.grad.dtype == torch.float32
    return cell.weight.grad


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_close_to_those_in_float32(gradient: dk.Gradient, dtype: torch.dtype) -> None:
    full, cast = gradient_of(gradient, None), gradient_of(gradient, dtype)
    # SHINE's H comes from the differences of values that were rounded to 16 bits.
    units = 40 if gradient == dk.Shine(fallback=3.0) else 16
    assert (cast - full).norm() <= units * torch.finfo(dtype).eps * full.norm()
    assert not torch.equal(cast, full)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("history_dtype", [None, torch.bfloat16])
def test_state_and_history_keep_their_dtypes(
    dtype: torch.dtype, history_dtype: torch.dtype | None
) -> None:
    """Autocast lowers what f computes; the state is that of z0, the history as asked."""
    seen: list[torch.dtype] = []
    cell = TanhCell(8, 0.5, torch.float32)

    def f(z: Tensor, x: Tensor) -> Tensor:
        seen.append(z.dtype)
        return cell(z, x)

    solver = dk.Broyden(max_steps=10, rtol=1e-2, history_dtype=history_dtype)
    witness = Witness()
    layer = dk.DEQ(f, solver=solver, gradient=witness)
    with torch.autocast("cpu", dtype):
        z = layer(torch.zeros(2, 8), torch.randn(2, 3))
        assert f(z, torch.randn(2, 3)).dtype == dtype
    z.sum().backward()
    assert set(seen) == {torch.float32}
    assert layer.last_solution.z.dtype == torch.float32
    (inverse,) = witness.inverses
    assert inverse.directions.dtype == (history_dtype or torch.float32)
    assert inverse.algebra.dtype == torch.float64


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("inside", [True, False])
def test_the_backward_pass_may_be_inside(gradient: dk.Gradient, inside: bool) -> None:
    cell = TanhCell(8, 0.5, torch.float32)
    layer = dk.DEQ(cell, solver=SOLVER, gradient=gradient)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(torch.zeros(2, 8), torch.randn(2, 3)).square().sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert cell.weight.grad.isfinite().all()
    assert cell.weight.grad.any()


def large(dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A map whose fixed point has a norm beyond float16: entries of 2000, 10,000 of them."""
    shift = (1000 + torch.rand(2, 10_000)).to(dtype).requires_grad_()
    return lambda z: 0.5 * z + shift, torch.zeros(2, 10_000, dtype=dtype), shift


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "solver",
    [
        dk.Broyden(max_steps=20, rtol=1e-2),
        dk.FixedPoint(max_steps=30, rtol=1e-2),
        dk.Anderson(max_steps=20, rtol=1e-2),
        dk.GMRES(max_steps=20, rtol=1e-2),
        dk.AdjointBroyden(max_steps=20, rtol=1e-2),
    ],
    ids=lambda s: type(s).__name__,
)
def test_norms_do_not_overflow(solver: dk.Solver, dtype: torch.dtype) -> None:
    f, z0, _ = large(dtype)
    solution = solver(f, z0)
    assert solution.converged.all()
    trace = solution.trace
    assert trace[~trace.isnan()].isfinite().all()
    assert (trace[:, 0] > 65504).all()
    torch.testing.assert_close(solution.z, 2 * f(z0).detach(), rtol=2e-2, atol=0.0)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [1e-3, 3e4])
def test_gradients_of_large_states(gradient: dk.Gradient, dtype: torch.dtype, size: float) -> None:
    """∂z/∂shift = 2, for the estimators that find it; cotangents with norms beyond float16 too."""
    f, z0, shift = large(dtype)
    layer = dk.DEQ(f, solver=dk.Broyden(max_steps=20, rtol=1e-2), gradient=gradient)
    cotangent = torch.full_like(z0, size)
    layer(z0).backward(cotangent)
    assert shift.grad.isfinite().all()
    factor = (shift.grad.double() / cotangent.double()).mean().item()
    steps = getattr(gradient, "steps", None)
    if isinstance(gradient, dk.Neumann | dk.Unrolled):
        expected = sum(0.5 * (0.5 + 0.5 * 0.5) ** k for k in range(steps))
    else:
        expected = 1.0 if gradient == dk.JacobianFree() else 2.0
    assert factor == pytest.approx(expected, rel=3e-2)
