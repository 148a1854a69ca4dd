"""Weight norm, spectral norm, and one computation of them per solve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import deq_kernels as dk
from deq_kernels.nn import one_solve, spectral_norm, weight_norm


class Cell(nn.Module):
    """tanh(norm(W) z + x), counting how often the weight is computed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.computed = 0
        linear.parametrizations.weight[0].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.computed += 1

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(z) + x)


def _linear(dim: int = 6) -> nn.Linear:
    return nn.Linear(dim, dim, bias=False, dtype=torch.float64)


def test_weight_norm_has_lengths_and_directions() -> None:
    linear = _linear()
    plain = linear.weight.detach().clone()
    assert weight_norm(linear) is linear
    torch.testing.assert_close(linear.weight, plain)
    with torch.no_grad():
        linear.parametrizations.weight.original0.fill_(0.5)
    torch.testing.assert_close(linear.weight.norm(dim=1), torch.full((6,), 0.5).double())


@pytest.mark.parametrize("bound", [0.9, 1.0, 3.0])
def test_spectral_norm_tends_to_its_bound(bound: float) -> None:
    linear = spectral_norm(_linear(), bound=bound)
    for _ in range(300):
        weight = linear.weight
    norm = torch.linalg.matrix_norm(weight, 2).item()
    assert norm == pytest.approx(bound, rel=1e-6)
    linear.eval()
    assert torch.equal(linear.weight, linear.weight)


def test_spectral_norm_reaches_its_parameter() -> None:
    linear = spectral_norm(_linear(3), bound=0.7).eval()
    u, v = (linear.parametrizations.weight[0].get_buffer(f"_{name}") for name in "uv")
    original = linear.parametrizations.weight.original

    def scaled(weight: Tensor) -> Tensor:
        return 0.7 * weight / (u @ weight @ v)

    torch.testing.assert_close(linear.weight, scaled(original))
    (actual,) = torch.autograd.grad(linear.weight.sin().sum(), original)
    (expected,) = torch.autograd.grad(scaled(original).sin().sum(), original)
    torch.testing.assert_close(actual, expected)


def test_a_bound_below_one_makes_a_contraction() -> None:
    linear = spectral_norm(_linear(20), bound=0.9, power_steps=20)
    cell = Cell(linear)
    solution = dk.FixedPoint(max_steps=200, rtol=1e-8)(
        lambda z: cell(z, torch.ones(1, 20).double()), torch.randn(4, 20, dtype=torch.float64)
    )
    assert solution.converged.all()


@pytest.mark.parametrize("make", [weight_norm, spectral_norm])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradient", [dk.Implicit(), dk.Unrolled(steps=3), dk.Shine()])
def test_one_computation_serves_solve_and_gradient(
    make: Any, training: bool, gradient: dk.Gradient
) -> None:
    cell = Cell(make(_linear())).train(training)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.3)
    layer = dk.DEQ(cell, solver=dk.Broyden(max_steps=40, rtol=1e-10), gradient=gradient)
    x = torch.randn(3, 6, dtype=torch.float64)
    cell.computed = 0
    with one_solve(cell):
        z = layer(torch.zeros(3, 6, dtype=torch.float64), x)
    z.sum().backward()
    assert cell.computed == 1
    assert layer.last_solution is not None
    assert layer.last_solution.steps.max() > 3
    for parameter in cell.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_gradient_through_one_solve_is_right() -> None:
    cell = Cell(weight_norm(_linear()))
    with torch.no_grad():
        cell.linear.parametrizations.weight.original0.mul_(0.5)
    tight = dk.Broyden(max_steps=60, rtol=1e-12)
    layer = dk.DEQ(cell, solver=tight, gradient=dk.Implicit(solver=tight))
    x, z0 = torch.randn(3, 6, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64)
    with one_solve(cell):
        layer(z0, x).square().sum().backward()
    inside = [parameter.grad for parameter in cell.parameters()]
    cell.zero_grad()
    layer(z0, x).square().sum().backward()
    for parameter, grad in zip(cell.parameters(), inside, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_the_cache_is_gone_afterwards_and_after_an_error() -> None:
    linear = weight_norm(_linear())

    def fail() -> None:
        with one_solve(linear):
            assert linear.weight is linear.weight
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert linear.weight is not linear.weight


def test_without_autograd_no_graph_is_asked_for() -> None:
    linear = weight_norm(_linear())
    with torch.no_grad(), one_solve(linear):
        assert not linear.weight.requires_grad
    linear.requires_grad_(False)
    with one_solve(linear):
        assert not linear.weight.requires_grad


def test_a_cache_without_a_graph_is_refused() -> None:
    cell = nn.Sequential(weight_norm(_linear()))
    with parametrize.cached():
        with torch.no_grad():
            _ = cell[0].weight
        with (
            pytest.raises(RuntimeError, match=r"0\.weight is cached without a graph"),
            one_solve(cell),
        ):
            pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "kernel"}, "module must have a parameter called 'kernel'; Linear has none"),
        ({"name": "bias"}, "module must have a parameter called 'bias'"),
        ({"bound": 0.0}, "bound must be finite and above 0; got 0.0"),
        ({"bound": float("inf")}, "bound must be finite and above 0"),
        ({"power_steps": 0}, "power_steps must be at least 1; got 0"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    linear = _linear()
    with pytest.raises(ValueError, match=message):
        spectral_norm(linear, **options)
    assert not parametrize.is_parametrized(linear)


def test_weight_norm_refuses_a_missing_parameter() -> None:
    with pytest.raises(ValueError, match="module must have a parameter called 'bias'"):
        weight_norm(_linear(), name="bias")


def test_a_scaled_weight_can_be_assigned() -> None:
    linear = spectral_norm(_linear(), bound=0.5)
    linear.weight = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(linear.weight, 0.5 * torch.eye(6, dtype=torch.float64))
