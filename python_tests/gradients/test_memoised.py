"""Cells that compute something once and keep it: their gradients reach what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import deq_kernels as dk

TIGHT = dk.Broyden(max_steps=100, rtol=1e-12)
GRADIENTS = (
    dk.Implicit(solver=dk.GMRES(max_steps=40, rtol=1e-12)),
    dk.JacobianFree(),
    dk.JacobianFree(refine=2),
    dk.Shine(),
    dk.Limited(),
    dk.Neumann(),
    dk.Adaptive(),
    dk.Unrolled(),
)


class Memo(nn.Module):
    """tanh(½ (W/‖W‖) z + x), W/‖W‖ being computed at most once after each `forget`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
        self.evaluations = 0
        self.forget: Callable[[], None] = lambda: None

    def unit(self) -> Tensor:
        return self.weight / self.weight.norm()

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        return torch.tanh(0.5 * z @ self.unit().T + x)


class InAttribute(Memo):
    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None
        self.forget = lambda: setattr(self, "kept", None)

    def unit(self) -> Tensor:
        if self.kept is None:
            self.kept = super().unit()
        return self.kept


class InDictionary(Memo):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.forget = self.kept.clear

    def unit(self) -> Tensor:
        if "unit" not in self.kept:
            self.kept["unit"] = super().unit()
        return self.kept["unit"]


class InFunctionCache(Memo):
    def __init__(self) -> None:
        super().__init__()
        self.cached = cache(super().unit)
        self.forget = self.cached.cache_clear

    def unit(self) -> Tensor:
        return self.cached()


CELLS = (InAttribute, InDictionary, InFunctionCache)


def data() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", CELLS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_what_a_cell_keeps_carries_gradients(gradient: dk.Gradient, kind: type[Memo]) -> None:
    cell, plain = kind(), Memo()
    plain.load_state_dict(cell.state_dict())
    z0, x = data()
    for module in (cell, plain):
        module.forget()
        dk.DEQ(module, solver=TIGHT, gradient=gradient)(z0, x).square().sum().backward()
    torch.testing.assert_close(cell.weight.grad, plain.weight.grad, rtol=1e-12, atol=0)
    assert cell.evaluations == plain.evaluations


@pytest.mark.parametrize(
    "solver",
    [
        dk.AdjointBroyden(rtol=1e-12),
        dk.Anderson(rtol=1e-12),
        dk.Broyden(rtol=1e-12, compact=True),
        dk.FixedPoint(max_steps=200, rtol=1e-12),
    ],
    ids=["AdjointBroyden", "Anderson", "compact", "FixedPoint"],
)
def test_behind_any_solver(solver: dk.Solver) -> None:
    cell = InAttribute()
    z0, x = data()
    layer = dk.DEQ(cell, solver=solver, gradient=GRADIENTS[0], per_sample=(0,))
    layer(z0, x).square().sum().backward()
    plain = Memo()
    plain.load_state_dict(cell.state_dict())
    dk.DEQ(plain, solver=TIGHT, gradient=GRADIENTS[0])(z0, x).square().sum().backward()
    torch.testing.assert_close(cell.weight.grad, plain.weight.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "parametrization",
    [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm],
    ids=lambda p: p.__name__,
)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_parametrised_weights_under_torchs_cache(
    gradient: dk.Gradient, parametrization: Callable[[nn.Module], nn.Module]
) -> None:
    linear = parametrization(nn.Linear(4, 4).double()).eval()
    z0, x = data()
    layer = dk.DEQ(lambda z, v: torch.tanh(0.5 * linear(z) + v), solver=TIGHT, gradient=gradient)
    expected = torch.autograd.grad(layer(z0, x).square().sum(), tuple(linear.parameters()))
    with parametrize.cached():
        z = layer(z0, x)
    actual = torch.autograd.grad(z.square().sum(), tuple(linear.parameters()))
    for gradient_of, target in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient_of, target, rtol=1e-10, atol=1e-12)


def test_the_evaluation_that_fills_the_memory_leaves_no_graph_behind() -> None:
    """In what the solver sees; and the others run without autograd, as all do without gradients."""
    modes = []
    weight = nn.Parameter(0.3 * torch.eye(4, dtype=torch.float64))

    def cell(z: Tensor, x: Tensor) -> Tensor:
        modes.append((torch.is_grad_enabled(), z.requires_grad))
        return torch.tanh(z @ weight + x)

    layer = dk.DEQ(cell, solver=TIGHT)
    z0, x = data()
    layer(z0, x)
    assert modes[0] == (True, False)
    assert modes[1:-1] == [(False, False)] * (len(modes) - 2)
    assert modes[-1] == (True, True)  # the recorded one
    assert not layer.last_solution.z.requires_grad
    modes.clear()
    with torch.no_grad():
        layer(z0, x)
    assert modes == [(False, False)] * len(modes)


def test_second_derivatives_of_what_is_kept() -> None:
    """Right once it was forgotten; refused while the second evaluation reads the first one's."""
    cell = InAttribute()
    z0, x = data()
    x.requires_grad_()
    layer = dk.DEQ(cell, solver=TIGHT, gradient=GRADIENTS[0])

    def slope(module: Memo, gradient: dk.Gradient) -> Tensor:
        module.forget()
        z = dk.DEQ(module, solver=TIGHT, gradient=gradient)(z0, x)
        module.forget()
        return torch.autograd.grad(z.pow(3).sum(), x, create_graph=True)[0]

    second = torch.autograd.grad(slope(cell, GRADIENTS[0]).square().sum(), (cell.weight, x))
    plain = Memo()
    plain.load_state_dict(cell.state_dict())
    unrolled = slope(plain, dk.Unrolled(steps=80, damping=1.0)).square().sum()
    for actual, target in zip(
        second, torch.autograd.grad(unrolled, (plain.weight, x)), strict=True
    ):
        torch.testing.assert_close(actual, target, rtol=1e-8, atol=1e-10)

    cell.forget()
    (first,) = torch.autograd.grad(layer(z0, x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="in an earlier evaluation of f"):
        first.sum().backward()


def test_a_kept_value_of_an_input_does_not_hide_it() -> None:
    """The second derivative is taken at inputs of its own, which the cell would not look at."""
    kept: dict[str, Tensor] = {}

    def cell(z: Tensor, x: Tensor) -> Tensor:
        if "x" not in kept:
            kept["x"] = torch.sin(x)
        return torch.tanh(0.4 * z + kept["x"])

    z0, x = data()
    x.requires_grad_()
    for given in (x, x.exp()):
        kept.clear()
        layer = dk.DEQ(cell, solver=TIGHT, gradient=GRADIENTS[0])
        (first,) = torch.autograd.grad(layer(z0, given).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="in an earlier evaluation of f"):
            first.sum().backward()
