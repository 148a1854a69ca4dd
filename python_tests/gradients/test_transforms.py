"""Ways to differentiate other than .backward(): right, or refused by name; never a silent zero."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import deq_kernels as dk
from deq_kernels.gradients import AdjointGradient
from python_tests.gradients.tanh_layer import TIGHT, TanhCell

ADJOINT = (
    dk.Implicit(solver=TIGHT),
    dk.JacobianFree(),
    dk.JacobianFree(refine=2),
    dk.Shine(),
    dk.Shine(refine=2),
    dk.Limited(),
    dk.Neumann(),
    dk.Adaptive(),
)
GRADIENTS = (*ADJOINT, dk.Unrolled())
LINEAR = (dk.Implicit(solver=TIGHT), dk.JacobianFree(), dk.Shine(), dk.Neumann(), dk.Unrolled())
"""Those whose w is linear in ℓ."""

pytestmark = [
    # Torch's own forward mode uses what it deprecates.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    # Products with H are taken one after the other under vmap.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
Z0 = torch.zeros(2, 4, dtype=torch.float64)


def layer_and_input(gradient: dk.Gradient) -> tuple[dk.DEQ, Tensor]:
    layer = dk.DEQ(TanhCell(4, 0.6), solver=TIGHT, gradient=gradient)
    return layer, torch.randn(2, 3, dtype=torch.float64)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "grad": lambda f, x: torch.func.grad(lambda v: f(v).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda v: f(v).sum())(x),
    "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_transforms_are_refused(gradient: dk.Gradient, name: str) -> None:
    layer, x = layer_and_input(gradient)
    with pytest.raises(NotImplementedError, match=r"DEQ does not run inside transforms of torch"):
        TRANSFORMS[name](lambda v: layer(Z0, v), x)
    assert layer(Z0, x).isfinite().all()  # and nothing of them is left


@pytest.mark.parametrize("what", ["input", "start", "parameter"])
def test_forward_mode_is_refused(what: str) -> None:
    layer, x = layer_and_input(dk.JacobianFree())
    z0 = Z0.clone()
    with forward_ad.dual_level():
        if what == "input":
            x = forward_ad.make_dual(x, torch.ones_like(x))
        elif what == "start":
            z0 = forward_ad.make_dual(z0, torch.ones_like(z0))
        else:
            weight = layer.cell.weight.detach()
            del layer.cell.weight
            layer.cell.weight = forward_ad.make_dual(weight, torch.ones_like(weight))
        with pytest.raises(NotImplementedError, match=r"DEQ has no forward-mode derivative"):
            layer(z0, x)


def test_a_tangent_that_does_not_reach_f_is_no_matter() -> None:
    layer, x = layer_and_input(dk.JacobianFree())
    with forward_ad.dual_level():
        other = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        assert layer(Z0, x).isfinite().all()
        assert forward_ad.unpack_dual(other).tangent is not None


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_batches_of_cotangents_are_right_or_refused(gradient: dk.Gradient) -> None:
    layer, x = layer_and_input(gradient)
    x.requires_grad_()
    z = layer(Z0, x)
    cotangents = torch.randn(5, *z.shape, dtype=z.dtype)

    def product(cotangent: Tensor, **options: bool) -> Tensor:
        return torch.autograd.grad(z, x, cotangent, retain_graph=True, **options)[0]

    ways = (
        lambda: product(cotangents, is_grads_batched=True),
        lambda: torch.func.vmap(product)(cotangents),
    )
    for batched in ways:
        if getattr(gradient, "needs_vjp", False):
            with pytest.raises(NotImplementedError, match="takes one cotangent at a time"):
                batched()
        else:
            singly = torch.stack([product(cotangent) for cotangent in cotangents])
            torch.testing.assert_close(batched(), singly, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", LINEAR, ids=lambda g: type(g).__name__)
def test_jacobians_row_by_row(gradient: dk.Gradient) -> None:
    layer, x = layer_and_input(gradient)
    rows = torch.autograd.functional.jacobian(lambda v: layer(Z0, v), x)
    v = x.clone().requires_grad_()
    z = layer(Z0, v)
    cotangent = torch.randn_like(z)
    (product,) = torch.autograd.grad(z, v, cotangent)
    torch.testing.assert_close(torch.einsum("bi,bicj->cj", cotangent, rows), product)


def test_a_layer_with_other_parameters() -> None:
    layer, x = layer_and_input(dk.Implicit(solver=TIGHT))
    other = TanhCell(4, 0.5)
    own = layer(Z0, x)
    parameters = {f"cell.{name}": p for name, p in other.named_parameters()}
    z = torch.func.functional_call(layer, parameters, (Z0, x))
    assert not torch.allclose(z, own)
    z.sum().backward()
    expected = dk.DEQ(other, solver=TIGHT, gradient=dk.Implicit(solver=TIGHT))(Z0, x)
    grads = torch.autograd.grad(expected.sum(), tuple(other.parameters()))
    for parameter, target in zip(other.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, target)
    assert layer.cell.weight.grad is None


@pytest.mark.parametrize("gradient", ADJOINT, ids=lambda g: type(g).__name__)
def test_checkpoints(gradient: dk.Gradient) -> None:
    """Recomputation gives the same gradient."""
    layer, x = layer_and_input(gradient)
    cell = layer.cell
    layer(Z0, x).sum().backward()
    expected = cell.weight.grad.clone()
    cell.weight.grad = None
    recomputed = dk.DEQ(
        lambda z, v: checkpoint(cell, z, v, use_reentrant=False), solver=TIGHT, gradient=gradient
    )
    recomputed(Z0, x).sum().backward()
    torch.testing.assert_close(cell.weight.grad, expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # of torch
@pytest.mark.parametrize("gradient", ADJOINT, ids=lambda g: type(g).__name__)
def test_checkpoints_that_hide_parameters(gradient: AdjointGradient) -> None:
    layer, x = layer_and_input(gradient)
    cell = layer.cell
    hiding = dk.DEQ(
        lambda z, v: checkpoint(cell, z, v, use_reentrant=True), solver=TIGHT, gradient=gradient
    )
    if gradient.needs_vjp:
        with pytest.raises(NotImplementedError, match="Pass use_reentrant=False"):
            hiding(Z0, x)
    else:  # torch has warned
        assert not hiding(Z0, x).requires_grad


@pytest.mark.parametrize("gradient", ADJOINT, ids=lambda g: type(g).__name__)
def test_a_parameter_that_is_the_solution(gradient: dk.Gradient) -> None:
    """f returns a leaf as it is, which has no operation behind it."""
    theta = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    layer = dk.DEQ(lambda z: theta, solver=TIGHT, gradient=gradient)
    cotangent = torch.randn(2, 4, dtype=torch.float64)
    with pytest.warns(dk.DetachedStateWarning) if gradient.needs_vjp else nullcontext():
        z = layer(Z0)
    z.backward(cotangent)
    scale = 1.0 if not isinstance(gradient, dk.Neumann) else 1 - 0.5**gradient.steps
    torch.testing.assert_close(theta.grad, scale * cotangent)
