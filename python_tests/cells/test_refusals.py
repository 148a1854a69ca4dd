"""Ways to differentiate a structured cell that it does not have, refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import deq_kernels as dk
from python_tests.cells.batches import DOUBLE, contraction
from python_tests.cells.solves import solve_dense

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

BIASED = (dk.Neumann(), dk.Neumann(steps=1), dk.JacobianFree())


def solve(u: Tensor, weight: Tensor, gradient: dk.Gradient | None = None) -> Tensor:
    return solve_dense(u, weight, activation="tanh", gradient=gradient)


def problem() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, dtype=DOUBLE, requires_grad=True), contraction(3).requires_grad_()


@pytest.mark.parametrize("gradient", BIASED, ids=repr)
@pytest.mark.parametrize("chosen", [0, 1], ids=["u", "weight"])
def test_estimates_have_no_second_derivatives(gradient: dk.Gradient, chosen: int) -> None:
    tensors = problem()
    tensors[1 - chosen].requires_grad_(False)
    z = solve(*tensors, gradient)
    (first,) = torch.autograd.grad(z.square().sum(), tensors[chosen], create_graph=True)
    name = type(gradient).__name__
    with pytest.raises(NotImplementedError, match=f"{name} gives first derivatives only"):
        first.sum().backward()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "grad": lambda f, x: torch.func.grad(lambda v: f(v).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda v: f(v).sum())(x),
    "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("gradient", [None, *BIASED], ids=repr)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, gradient: dk.Gradient | None) -> None:
    u, weight = problem()
    with pytest.raises(NotImplementedError, match=r"does not run inside transforms of torch"):
        TRANSFORMS[name](lambda v: solve(v, weight, gradient), u.detach())
    assert solve(u, weight).isfinite().all()


@pytest.mark.parametrize("chosen", [0, 1, 2], ids=["u", "weight", "z0"])
def test_forward_mode(chosen: int) -> None:
    u, weight = (tensor.detach() for tensor in problem())
    tensors = [u, weight, torch.zeros_like(u)]
    with forward_ad.dual_level():
        tensors[chosen] = forward_ad.make_dual(tensors[chosen], torch.ones_like(tensors[chosen]))
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            solve_dense(tensors[0], tensors[1], activation="tanh", z0=tensors[2])


@pytest.mark.parametrize("gradient", [None, *BIASED], ids=repr)
def test_batches_of_cotangents(gradient: dk.Gradient | None) -> None:
    u, weight = problem()
    z = solve(u, weight, gradient)
    with pytest.raises(NotImplementedError, match="one cotangent at a time"):
        torch.autograd.grad(z, u, torch.ones(4, 2, 3, dtype=DOUBLE), is_grads_batched=True)


def test_a_graph_is_used_once() -> None:
    u, weight = problem()
    z = solve(u, weight)
    z.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        z.sum().backward()
