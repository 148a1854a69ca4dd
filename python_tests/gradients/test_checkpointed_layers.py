"""Layers under torch.utils.checkpoint and hooks on saved tensors: the same bits, in two solves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import deq_kernels as dk
from python_tests.gradients.tanh_layer import TanhCell

Model = Callable[[Tensor], Tensor]

GRADIENTS = (
    dk.Implicit(),
    dk.JacobianFree(),
    dk.JacobianFree(refine=3),
    dk.Shine(),
    dk.Shine(refine=3),
    dk.Limited(),
    dk.Neumann(),
    dk.Adaptive(tolerance=1e-6),
    dk.Unrolled(steps=3),
)


def early(model: Model, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=False)


def late(model: Model, x: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):
        return early(model, x)


def nested(model: Model, x: Tensor) -> Tensor:
    return early(lambda v: 2.0 * early(model, v), x) / 2.0


def reentrant(model: Model, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=True)


CHECKPOINTS = (early, late, nested, reentrant)


def on_cpu(model: Model, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return model(x)


def copied(model: Model, x: Tensor) -> Tensor:
    """Hooks that hand back other tensors than they were given."""
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.clone):
        return model(x)


class Counted(nn.Module):
    """A model around a layer that counts its solves and the evaluations of its cell."""

    def __init__(self, gradient: dk.Gradient, rtol: float = 1e-8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.before = nn.Linear(3, 3).double()
        self.cell = TanhCell(4, 0.6)
        self.layer = dk.DEQ(self._cell, solver=dk.Broyden(rtol=rtol), gradient=gradient)
        self.evaluations = 0

    def _cell(self, z: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self.cell(z, x)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(torch.zeros(len(x), 4, dtype=x.dtype), self.before(x))
        return (torch.sin(z) * z).sum()


def loss_and_gradients(
    gradient: dk.Gradient, around: Callable[[Model, Tensor], Tensor]
) -> tuple[list[Tensor], int]:
    model = Counted(gradient)
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    around(model, x).backward()
    return [x.grad, *(p.grad for p in model.parameters())], model.evaluations


@pytest.mark.parametrize("around", CHECKPOINTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_checkpoints_solve_twice(gradient: dk.Gradient, around: Callable[..., Tensor]) -> None:
    expected, evaluations = loss_and_gradients(gradient, lambda model, x: model(x))
    actual, recomputed = loss_and_gradients(gradient, around)
    assert recomputed <= 2 * evaluations
    for gradient_of, target in zip(actual, expected, strict=True):
        assert torch.equal(gradient_of, target)


@pytest.mark.parametrize("around", [on_cpu, copied], ids=lambda c: c.__name__)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_saved_tensors_may_be_made_anew(
    gradient: dk.Gradient, around: Callable[..., Tensor]
) -> None:
    expected, evaluations = loss_and_gradients(gradient, lambda model, x: model(x))
    actual, again = loss_and_gradients(gradient, around)
    assert again == evaluations
    for gradient_of, target in zip(actual, expected, strict=True):
        assert torch.equal(gradient_of, target)


@pytest.mark.parametrize("around", [early, late, nested, on_cpu, copied], ids=lambda c: c.__name__)
@pytest.mark.parametrize("gradient", [dk.Implicit(), dk.Unrolled()], ids=["Implicit", "Unrolled"])
def test_second_derivatives(gradient: dk.Gradient, around: Callable[..., Tensor]) -> None:
    def second(around: Callable[..., Tensor]) -> tuple[list[Tensor], int]:
        model = Counted(gradient)
        x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        (slope,) = torch.autograd.grad(around(model, x), x, create_graph=True)
        parameters = (x, *model.parameters())
        return list(torch.autograd.grad(slope.square().sum(), parameters)), model.evaluations

    expected, evaluations = second(lambda model, x: model(x))
    actual, recomputed = second(around)
    assert recomputed <= 3 * evaluations  # once more for each of the two backward passes
    for gradient_of, target in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient_of, target, rtol=1e-12, atol=1e-14)


def test_estimates_are_refused_under_a_checkpoint_too() -> None:
    model = Counted(dk.Shine(refine=2))
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(early(model, x), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="gives first derivatives only"):
        slope.sum().backward()


@pytest.mark.parametrize("around", [lambda model, x: model(x), early], ids=["plain", "checkpoint"])
def test_nothing_of_f_outlives_its_backward_pass(around: Callable[..., Tensor]) -> None:
    """By counting references: no garbage collection is waited for."""
    recorded: list[weakref.ref[Tensor]] = []
    layer = dk.DEQ(lambda z, x: _noted(torch.tanh(0.5 * z + x), recorded), gradient=dk.Implicit())
    x = torch.ones(2, 3, requires_grad=True)
    gc.disable()
    try:
        loss = around(lambda v: layer(torch.zeros(2, 3), v).sum(), x)
        loss.backward()
        assert recorded
        assert all(reference() is None for reference in recorded)
        with pytest.raises(RuntimeError, match=r"backward through the graph a second time"):
            loss.backward()
    finally:
        gc.enable()


def _noted(f_z: Tensor, recorded: list[weakref.ref[Tensor]]) -> Tensor:
    if f_z.requires_grad:
        recorded.append(weakref.ref(f_z))
    return f_z
