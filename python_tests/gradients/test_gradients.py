"""Every estimator against dense linear algebra at the solution."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops.broyden import op as broyden_op
from python_tests.gradients.tanh_layer import (
    TIGHT,
    TanhCell,
    assert_gradients,
    parameter_gradients,
    solved,
)
from python_tests.problems import DenseBroyden, Tanh, matrix_of_norm

ESTIMATORS = (
    dk.Implicit(solver=TIGHT),
    dk.JacobianFree(),
    dk.Shine(),
    dk.Shine(fallback=1.3),
    dk.Neumann(steps=5, damping=0.5),
    dk.JacobianFree(refine=2),
    dk.Shine(fallback=1.3, refine=2),
    dk.Limited(steps=3),
    dk.Adaptive(),
    dk.Unrolled(steps=5, damping=0.5),
)
ADJOINT = ESTIMATORS[:-1]


def test_implicit_equals_a_dense_solve() -> None:
    cell, x, layer, z0, cotangent = solved(dk.Implicit(solver=TIGHT))
    z = layer(z0, x)
    z.backward(cotangent)
    w = cell.adjoint(z, x, cotangent)
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-9)


@pytest.mark.parametrize("adjoint_solver", [TIGHT, dk.FixedPoint(max_steps=400, rtol=1e-13)])
def test_implicit_passes_gradcheck(adjoint_solver: dk.Solver) -> None:
    cell, x, layer, z0, _ = solved(dk.Implicit(solver=adjoint_solver), batch=2, dim=5)
    assert torch.autograd.gradcheck(
        lambda v, *parameters: layer(z0, v), (x, cell.weight, cell.inject), atol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 6, 12])
@pytest.mark.parametrize("damping", [1.0, 0.8])
def test_shine_equals_a_dense_inverse_of_the_same_steps(steps: int, damping: float) -> None:
    """w = −Hᵀℓ with H from the textbook update along the same trajectory."""
    problem = Tanh.random(3, 60, 0.9)
    solver = dk.Broyden(max_steps=steps + 1, rtol=0.0, damping=damping)
    z0 = torch.randn(3, 60, dtype=torch.float64)
    solution = solver(problem, z0)
    cotangent = torch.randn(3, 60, dtype=torch.float64)

    def no_vjp(w: Tensor) -> Tensor:
        raise AssertionError("SHINE takes no VJP")

    w = dk.Shine().adjoint(cotangent, no_vjp, solution.inverse_jacobian)
    for sample in range(3):
        oracle = DenseBroyden.run(problem.sample(sample), z0[sample], steps, damping=damping)
        expected = -oracle.inverse.T @ cotangent[sample]
        torch.testing.assert_close(w[sample], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_shine_gradient_reaches_everything(backend: str) -> None:
    """With samples of different ranks: the first is solved from the start."""
    cell, x, layer, z0, cotangent = solved(dk.Shine())
    with dk.use_backend(backend):
        z0[0] = TIGHT(lambda v: cell(v, x), z0).z[0]
        z = layer(z0, x)
        solution = TIGHT(lambda v: cell(v, x), z0)
        assert len(solution.inverse_jacobian.rank.unique()) > 1
        z.backward(cotangent)
    w = -solution.inverse_jacobian.rmatvec(cotangent)
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-9)


def test_shine_falls_back_per_sample() -> None:
    """H scaled so that one sample's w is too long, one is not finite, and one is trusted."""
    inverse = dk.LowRankInverse.empty(3, 1, 4, dtype=torch.float64)
    inverse.u.zero_()
    inverse.v.zero_()
    inverse.rank.fill_(1)
    inverse.u[0, 0, 0], inverse.v[0, 0, 0] = -5.0, 1.0
    inverse.u[1, 0, 0], inverse.v[1, 0, 0] = torch.nan, 1.0
    inverse.u[2, 0, 0], inverse.v[2, 0, 0] = 0.2, 1.0
    cotangent = torch.zeros(3, 4, dtype=torch.float64)
    cotangent[:, 0] = 2.0
    w = dk.Shine(fallback=1.3).adjoint(cotangent, lambda v: v, inverse)
    assert w[:, 0].tolist() == [2.0, 2.0, 1.6]
    w = dk.Shine().adjoint(cotangent, lambda v: v, inverse)
    assert w[0, 0] == 12.0
    assert w[1, 0].isnan()


def test_jacobian_free_uses_the_cotangent() -> None:
    cell, x, layer, z0, cotangent = solved(dk.JacobianFree())
    z = layer(z0, x)
    z.backward(cotangent)
    assert_gradients(cell, x, parameter_gradients(cell, z, x, cotangent), 1e-12)


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_neumann_is_the_truncated_series(steps: int, damping: float) -> None:
    cell, x, layer, z0, cotangent = solved(dk.Neumann(steps=steps, damping=damping))
    z = layer(z0, x)
    z.backward(cotangent)
    jacobian = cell.jacobians(z, x)
    w = torch.zeros_like(cotangent)
    for _ in range(steps):
        vjp = torch.einsum("bij,bi->bj", jacobian, w)
        w = damping * (cotangent + vjp) + (1.0 - damping) * w
    assert_gradients(cell, x, parameter_gradients(cell, z, x, w), 1e-10)


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_unrolled_agrees_with_neumann_at_a_fixed_point(steps: int, damping: float) -> None:
    gradients = []
    for gradient in (
        dk.Neumann(steps=steps, damping=damping),
        dk.Unrolled(steps=steps, damping=damping),
    ):
        torch.manual_seed(3)
        cell, x, layer, z0, cotangent = solved(gradient)
        z = layer(z0, x)
        z.backward(cotangent)
        gradients.append((z.detach(), cell.weight.grad, cell.inject.grad, x.grad))
    for neumann, unrolled in zip(*gradients, strict=True):
        torch.testing.assert_close(unrolled, neumann, rtol=1e-9, atol=1e-9)


def test_unrolled_output_is_the_last_unrolled_state() -> None:
    """Away from a fixed point: two damped steps from z*, seen by the loss and differentiated."""
    cell = TanhCell(6, 0.9)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    z_star = torch.randn(2, 6, dtype=torch.float64)
    h = dk.Unrolled(steps=2, damping=0.3).attach(lambda z: cell(z, x), z_star, None)
    expected = z_star
    for _ in range(2):
        expected = 0.7 * expected + 0.3 * cell(expected, x)
    torch.testing.assert_close(h, expected)
    grads = torch.autograd.grad(h.sum(), (cell.weight, x))
    for actual, target in zip(
        grads, torch.autograd.grad(expected.sum(), (cell.weight, x)), strict=True
    ):
        torch.testing.assert_close(actual, target)


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_flow_in_both_modes(gradient: dk.Gradient, training: bool) -> None:
    cell, x, layer, z0, cotangent = solved(gradient)
    layer.train(training)
    layer(z0, x).backward(cotangent)
    for tensor in (cell.weight, cell.inject, x):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_the_history_is_freed_by_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """While loss, output and layer live on, and no sooner than the backward pass."""
    histories: list[weakref.ref[np.ndarray]] = []

    def watched(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        array = np.zeros(shape)
        histories.append(weakref.ref(array))
        return torch.from_numpy(array)

    monkeypatch.setattr(broyden_op, "new_history", watched)
    _, x, layer, z0, cotangent = solved(dk.Shine())
    z = layer(z0, x)
    loss = (z * cotangent).sum()
    assert [history() is None for history in histories] == [False]
    loss.backward()
    assert [history() is None for history in histories] == [True]
    assert layer.last_solution is not None
    assert z.grad_fn is not None


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("twice", [False, True])
def test_nothing_outlives_the_output(gradient: dk.Gradient, twice: bool) -> None:
    """No cycle of references keeps the inputs until the garbage collector comes along."""
    cell, x, layer, z0, cotangent = solved(gradient)
    watched = weakref.ref(x)
    gc.collect()
    gc.disable()
    try:
        z = layer(z0, x)
        gradients = torch.autograd.grad(z, (x, cell.weight), cotangent, create_graph=twice)
        del x, z, gradients
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda g: type(g).__name__)
def test_a_second_backward_says_that_the_graph_is_freed(gradient: dk.Gradient) -> None:
    _, x, layer, z0, cotangent = solved(gradient, batch=2, dim=7)
    loss = (layer(z0, x) * cotangent).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda g: type(g).__name__)
def test_repeated_backward_with_retain_graph(gradient: dk.Gradient) -> None:
    cell, x, layer, z0, cotangent = solved(gradient)
    z = layer(z0, x)
    z.backward(cotangent, retain_graph=True)
    first = cell.weight.grad.clone()
    z.backward(cotangent)
    torch.testing.assert_close(cell.weight.grad, 2 * first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1e20])
def test_implicit_gradient_scales_with_the_loss(scale: float) -> None:
    """The adjoint equation is linear; float32 squares of such cotangents would leave the range."""
    weight = matrix_of_norm(10, 0.9, torch.float32)
    shift = torch.randn(3, 10, requires_grad=True)
    cotangent = torch.randn(3, 10)
    cotangent[1] = 0.0
    layer = dk.DEQ(
        lambda z, u: torch.tanh(z @ weight.T) + u,
        solver=dk.Broyden(max_steps=60, rtol=1e-6),
        gradient=dk.Implicit(solver=dk.Broyden(max_steps=60, rtol=1e-5)),
    )
    grads = [
        torch.autograd.grad(layer(torch.zeros(3, 10), shift), shift, factor * cotangent)[0]
        for factor in (1.0, scale)
    ]
    torch.testing.assert_close(grads[1].double() / scale, grads[0].double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", ADJOINT, ids=lambda g: type(g).__name__)
def test_nothing_is_left_behind_on_the_recorded_state(gradient: dk.Gradient) -> None:
    """The only leaves that receive a gradient are the parameters and x."""
    cell, x, layer, z0, cotangent = solved(gradient)
    z = layer(z0, x)
    z.backward(cotangent)
    pending, leaves = [z.grad_fn], []
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending.extend(n for n, _ in node.next_functions if n is not None)
    with_gradient = {id(leaf) for leaf in leaves if leaf.grad is not None}
    assert with_gradient == {id(x), id(cell.weight), id(cell.inject)}


@pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda g: type(g).__name__)
def test_no_gradient_where_nothing_requires_one(gradient: dk.Gradient) -> None:
    cell, x, layer, z0, _ = solved(gradient)
    cell.requires_grad_(False)
    assert not layer(z0, x.detach()).requires_grad
    assert layer(z0, x).requires_grad


def test_implicit_reports_its_adjoint_solve() -> None:
    seen: list[dk.Solution] = []
    gradient = dk.Implicit(solver=dk.Broyden(max_steps=2, rtol=1e-12), on_solve=seen.append)
    _, x, layer, z0, cotangent = solved(gradient)
    with pytest.warns(dk.UnconvergedWarning, match="the adjoint solve"):
        layer(z0, x).backward(cotangent)
    assert len(seen) == 1
    assert (seen[0].status == dk.Status.MAX_STEPS).all()


def test_a_cell_without_dependence_on_z() -> None:
    """J = 0: every estimator gives the plain gradient."""
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, dtype=torch.float64)
    for gradient in [g for g in ADJOINT if not isinstance(g, dk.Neumann)]:
        layer = dk.DEQ(lambda z, v: v @ weight.T, solver=TIGHT, gradient=gradient)
        with pytest.warns(dk.DetachedStateWarning) if gradient.needs_vjp else nullcontext():
            z = layer(torch.zeros(2, 4).double(), x)
        (grad,) = torch.autograd.grad(z.sum(), weight)
        torch.testing.assert_close(grad, x.sum(0).expand(4, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dk.Shine(fallback=0.0), "fallback must be finite and above 0, or None"),
        (lambda: dk.Neumann(steps=0), "steps must be a whole number, at least 1"),
        (lambda: dk.Unrolled(damping=0.0), "damping must be above 0 and at most 1"),
        (lambda: dk.Unrolled(damping=1.5), "damping must be above 0 and at most 1"),
    ],
)
def test_options_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [dk.Implicit, dk.JacobianFree, dk.Shine, dk.Neumann, dk.Unrolled])
def test_unknown_options_are_rejected(kind: type) -> None:
    with pytest.raises(TypeError, match="tau"):
        kind(tau=0.5)
