"""Second derivatives: right for Implicit and Unrolled, refused by the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.nn.utils import parametrize

import deq_kernels as dk
from python_tests.gradients.tanh_layer import TIGHT, TanhCell, solved
from python_tests.problems import matrix_of_norm

BIASED = (
    dk.JacobianFree(),
    dk.JacobianFree(refine=2),
    dk.Shine(),
    dk.Shine(fallback=1.3, refine=2),
    dk.Limited(steps=3),
    dk.Neumann(),
    dk.Adaptive(tolerance=1e-6),
)


class RowsOfUnitLength(nn.Module):
    """A normalised weight; second derivatives of torch 2.13's weight_norm are wrong on the CPU."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.square().sum(dim=1, keepdim=True).sqrt()


def tight_layer(cell: Callable[..., object], **options: object) -> dk.DEQ:
    return dk.DEQ(cell, solver=TIGHT, gradient=dk.Implicit(solver=TIGHT), **options)


def small_cell() -> tuple[TanhCell, Tensor, Tensor]:
    cell = TanhCell(3, 0.7)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    return cell, x, torch.zeros(2, 3, dtype=torch.float64)


def test_parameters_and_inputs() -> None:
    cell, x, z0 = small_cell()
    layer = tight_layer(cell)
    assert gradgradcheck(
        lambda v, *parameters: layer(z0, v), (x, cell.weight, cell.inject), atol=1e-6
    )


@pytest.mark.parametrize(
    "solver",
    [
        dk.GMRES(max_steps=40, rtol=1e-13),
        dk.Anderson(max_steps=200, rtol=1e-13, stall_steps=None),
        dk.FixedPoint(max_steps=400, rtol=1e-13),
    ],
    ids=lambda s: type(s).__name__,
)
def test_any_solver_solves_the_equation_in_j_too(solver: dk.Solver) -> None:
    cell, x, z0 = small_cell()
    layer = dk.DEQ(cell, solver=TIGHT, gradient=dk.Implicit(solver=solver))
    assert gradgradcheck(
        lambda v, *parameters: layer(z0, v), (x, cell.weight, cell.inject), atol=1e-6
    )


def test_tensors_that_autograd_computed() -> None:
    """Inputs with a history, in positional and keyword arguments, nested, and used twice."""
    cell, x, z0 = small_cell()

    def f(z: Tensor, pair: tuple[Tensor, int], *, more: dict[str, Tensor]) -> Tensor:
        v, factor = pair
        return torch.tanh(z @ cell.weight.T * v + factor * more["shift"] * v + more["leaf"])

    layer = tight_layer(f)

    def output(v: Tensor, leaf: Tensor, *parameters: Tensor) -> Tensor:
        scale = torch.sigmoid(v @ cell.inject.T)
        return layer(z0, (scale, 2), more={"shift": torch.sin(scale), "leaf": leaf})

    leaf = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(output, (x, leaf, cell.weight, cell.inject), atol=1e-6)


def test_tuples_as_states() -> None:
    gain = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)

    def pair(state: tuple[Tensor, Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
        a, b = state
        c = gain[0] * torch.sin(b).sum(1, keepdim=True) + v
        return c, gain[1] * torch.cos(a) * v.exp() + b / 4

    layer = tight_layer(pair)
    z0 = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    assert gradgradcheck(lambda v, _: layer(z0, v), (x, gain), atol=1e-6)


def test_leaves_that_f_closes_over() -> None:
    weight = matrix_of_norm(3, 0.6).requires_grad_()
    shift = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    layer = tight_layer(lambda z: torch.sin(z @ weight.T + shift))
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    assert gradgradcheck(lambda *leaves: layer(z0), (weight, shift), atol=1e-6)


@pytest.mark.parametrize(
    ("f", "on_z"),
    [
        (lambda z, a, b: z @ a.T + b, True),  # Jᵀw does not depend on z
        (lambda z, a, b: a.sum() * b**2, False),  # f does not depend on z
        (lambda z, a, b: a[0] * b, False),  # nor is it curved
        (lambda z, a, b: torch.cos(z) / 2 + b, True),  # ∂f/∂b is constant
    ],
)
def test_maps_with_derivatives_that_vanish(f: Callable[..., Tensor], on_z: bool) -> None:
    a = matrix_of_norm(3, 0.5).requires_grad_()
    b = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    layer = tight_layer(f)
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    inputs = (a, b) if f(z0, a, b).requires_grad else (b,)
    with nullcontext() if on_z else pytest.warns(dk.DetachedStateWarning):
        assert gradgradcheck(lambda *_: layer(z0, a, b), inputs, atol=1e-6)


def test_a_penalty_on_the_gradient_equals_the_unrolled_one() -> None:
    """In one graph with layers before and after, by .backward()."""
    torch.manual_seed(2)
    before, after = nn.Linear(3, 3).double(), nn.Linear(3, 1).double()
    cell, x, z0 = small_cell()
    gradients = []
    for gradient in (dk.Implicit(solver=TIGHT), dk.Unrolled(steps=120, damping=1.0)):
        layer = dk.DEQ(cell, solver=TIGHT, gradient=gradient)
        parameters = (*before.parameters(), *cell.parameters(), *after.parameters())
        loss = after(layer(z0, before(x))).square().sum()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
    for implicit, unrolled in zip(*gradients, strict=True):
        torch.testing.assert_close(implicit, unrolled, rtol=1e-8, atol=1e-10)


def test_products_with_the_jacobian_of_the_layer() -> None:
    """The derivative in the direction of a cotangent: two backward passes make a forward one."""
    cell, x, z0 = small_cell()
    layer = tight_layer(cell)
    v = torch.randn_like(x)
    _, product = torch.autograd.functional.jvp(lambda u: layer(z0, u), x.detach(), v)
    step = 1e-6
    with torch.no_grad():
        difference = (layer(z0, x + step * v) - layer(z0, x - step * v)) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-6, atol=1e-8)


def test_the_second_solve_is_reported() -> None:
    seen: list[dk.Solution] = []
    cell, x, z0 = small_cell()
    implicit = dk.Implicit(solver=TIGHT, on_solve=seen.append)
    layer = dk.DEQ(cell, solver=TIGHT, gradient=implicit)
    (slope,) = torch.autograd.grad(layer(z0, x).sum(), x, create_graph=True)
    assert len(seen) == 1
    slope.square().sum().backward()
    assert len(seen) == 3  # in J for w, then in Jᵀ for z*
    assert all(solution.converged.all() for solution in seen)


def test_weights_that_were_computed_once_for_the_solve() -> None:
    """Then f closes over them; the second evaluation computes its own."""
    linear = nn.Linear(3, 3).double()
    parametrize.register_parametrization(linear, "weight", RowsOfUnitLength())
    layer = tight_layer(lambda z, v: 0.4 * torch.tanh(linear(z)) + v)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    z0 = torch.zeros(2, 3, dtype=torch.float64)

    def output(*_: Tensor) -> Tensor:
        with parametrize.cached():
            assert linear.weight.requires_grad  # computed here, and not by the solver
            return layer(z0, x)

    assert gradgradcheck(output, (x, *linear.parameters()), atol=1e-6)
    with parametrize.cached():
        assert linear.weight.requires_grad
        (slope,) = torch.autograd.grad(layer(z0, x).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="reads a tensor that autograd computed"):
            slope.sum().backward()


def test_weights_that_are_constants_by_now_are_refused() -> None:
    """What the second evaluation does not depend on would have no second derivative."""
    linear = nn.Linear(3, 3).double()
    parametrize.register_parametrization(linear, "weight", RowsOfUnitLength())
    layer = tight_layer(lambda z, v: 0.4 * torch.tanh(linear(z)) + v)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    z = layer(torch.zeros(2, 3, dtype=torch.float64), x)
    with parametrize.cached():
        with torch.no_grad():
            assert not linear.weight.requires_grad
        (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="computed without autograd by now"):
        slope.sum().backward()


def test_tensors_that_f_closes_over_are_refused() -> None:
    """Where autograd computed them: their derivatives would be zero without a word."""
    cell, x, z0 = small_cell()
    scale = torch.exp(x)
    layer = tight_layer(lambda z, v: torch.tanh(z @ cell.weight.T) * scale / 4 + v)
    (slope,) = torch.autograd.grad(layer(z0, x).sum(), cell.weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="Pass such tensors to the layer as arguments"):
        torch.autograd.grad(slope.sum(), x)
    first = torch.autograd.grad(layer(z0, x).sum(), (x, scale), retain_graph=True)
    for tensor, index in ((x, 0), (scale, 1)):
        z = layer(z0, x)
        (again,) = torch.autograd.grad(z.sum(), tensor, create_graph=True)
        torch.testing.assert_close(again, first[index], rtol=1e-12, atol=1e-12)


def test_an_argument_that_f_also_closes_over_is_refused() -> None:
    cell, x, z0 = small_cell()
    scale = torch.exp(x)
    layer = tight_layer(lambda z, v: torch.tanh(z @ cell.weight.T) * v / 4 + scale + x)
    (slope,) = torch.autograd.grad(layer(z0, scale).sum(), scale, create_graph=True)
    with pytest.raises(NotImplementedError, match="reads a tensor that autograd computed"):
        slope.sum().backward()


def test_a_map_that_changed_is_refused() -> None:
    cell, x, z0 = small_cell()
    gains = [1.0]
    layer = tight_layer(lambda z, v: gains[-1] * cell(z, v))
    z = layer(z0, x)
    gains.append(0.5)
    with pytest.raises(RuntimeError, match="it must be the map that was solved"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_second_evaluation_runs_under_the_same_autocast(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    weight = matrix_of_norm(4, 0.5, torch.float32).requires_grad_()

    def f(z: Tensor, v: Tensor) -> Tensor:
        product = z @ weight.T
        seen.append(product.dtype)
        return torch.tanh(product) + v

    x = torch.randn(2, 4, requires_grad=True)
    layer = dk.DEQ(f, solver=dk.Broyden(max_steps=20, rtol=1e-2))
    with torch.autocast("cpu", dtype):
        z = layer(torch.zeros(2, 4), x)
    (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert set(seen) == {dtype}
    assert weight.grad.isfinite().all()
    assert weight.grad.any()


@pytest.mark.parametrize("gradient", BIASED, ids=lambda g: type(g).__name__)
def test_biased_estimators_refuse(gradient: dk.Gradient) -> None:
    """In every direction: to parameters, to inputs, and to the cotangent."""
    cell, x, layer, z0, cotangent = solved(gradient)
    cotangent.requires_grad_()
    grads = torch.autograd.grad(layer(z0, x), (x, cell.weight), cotangent, create_graph=True)
    for gradient_of in grads:
        for tensor in (x, cell.weight, cell.inject, cotangent):
            with pytest.raises(NotImplementedError, match=r"first derivatives only.*or use Impl"):
                torch.autograd.grad(gradient_of.sum(), tensor, retain_graph=True)


def test_third_derivatives_are_refused() -> None:
    cell, x, z0 = small_cell()
    layer = tight_layer(cell)
    (first,) = torch.autograd.grad(layer(z0, x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="gives first and second derivatives"):
        second.sum().backward()


def test_unrolled_has_second_derivatives() -> None:
    cell = TanhCell(4, 0.8)
    z_star = torch.randn(2, 4, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    unrolled = dk.Unrolled(steps=3, damping=0.7)
    assert gradgradcheck(lambda v: unrolled.attach(lambda z: cell(z, v), z_star, None), (x,))
