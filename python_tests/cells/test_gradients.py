"""Gradients of structured cells against finite differences, dense algebra and the generic path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import deq_kernels as dk
from deq_kernels.ops.cells import Activation, value
from python_tests.cells.batches import (
    ACTIVATIONS,
    DOUBLE,
    SIZES,
    GraphBatch,
    contraction,
    graph_batch,
    jacobian,
    same_bits,
)
from python_tests.cells.solves import solve_dense, solve_graph
from python_tests.tolerances import assert_close

TIGHT: dict[str, Any] = {"rtol": 1e-14, "max_steps": 400, "stall_steps": None}
SMALL = (3, 0, 1, 2)
BIASED = (dk.Neumann(steps=4, damping=0.6), dk.Neumann(steps=1, damping=1.0), dk.JacobianFree())


def of_graphs(batch: GraphBatch, activation: str, **options: Any) -> Callable[..., Tensor]:
    """The solve as a function of b, W and, unless A is symmetric, A's values."""

    def solve(b: Tensor, weight: Tensor, values: Tensor | None = None) -> Tensor:
        adjacency = batch.adjacency
        if values is not None:
            adjacency = adjacency.with_values(values)
        return solve_graph(b, weight, adjacency, activation=activation, **(TIGHT | options))

    return solve


def leaves(batch: GraphBatch) -> tuple[Tensor, ...]:
    """b, W and, unless A is symmetric, A's values."""
    tensors = [batch.b, batch.weight]
    if not batch.adjacency.symmetric:
        tensors.append(batch.adjacency.values)
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_graph_gradients_and_second_derivatives(activation: str, symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric, sizes=SMALL, features=2)
    solve = of_graphs(batch, activation)
    assert gradcheck(solve, leaves(batch))
    assert gradgradcheck(solve, leaves(batch))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_gradients_and_second_derivatives(activation: str, size: int) -> None:
    u = torch.randn(2, size, dtype=DOUBLE, requires_grad=True)
    weight = contraction(size).requires_grad_()

    def solve(u: Tensor, weight: Tensor) -> Tensor:
        return solve_dense(u, weight, activation=activation, **TIGHT)

    assert gradcheck(solve, (u, weight))
    assert gradgradcheck(solve, (u, weight))


def test_third_derivatives() -> None:
    batch = graph_batch(sizes=(2,), features=2)
    solve = of_graphs(batch, "tanh")

    def second(*tensors: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(solve(*tensors).square().sum(), tensors, create_graph=True)
        total = sum(gradient.square().sum() for gradient in first)
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, tensors, create_graph=True)

    assert gradcheck(second, leaves(batch))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_adjoint_is_its_kronecker_system(symmetric: bool) -> None:
    """For a linear cell ∂L/∂b is w, and for others φ' times it."""
    batch = graph_batch(symmetric=symmetric)
    b = batch.b.clone().requires_grad_()
    z = solve_graph(b, batch.weight, batch.adjacency, activation="identity", **TIGHT)
    cotangent = torch.randn_like(z)
    (w,) = torch.autograd.grad(z, b, cotangent)
    matrix = torch.eye(z.numel(), dtype=DOUBLE) - jacobian(batch, z.detach(), "identity").T
    assert_close(w.flatten(), torch.linalg.solve(matrix, cotangent.flatten()), DOUBLE)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_gradients_of_values_are_those_of_a_dense_matrix(activation: str) -> None:
    batch = graph_batch()
    tensors = leaves(batch)
    cotangent = torch.randn_like(batch.b)
    actual = torch.autograd.grad(of_graphs(batch, activation)(*tensors), tensors, cotangent)

    b, weight, _ = tensors
    dense = batch.dense.clone().requires_grad_()
    z = torch.zeros_like(batch.b)
    for _ in range(300):
        z = batch.cell(z, weight, dense, b, activation)
    of_b, of_weight, of_dense = torch.autograd.grad(z, (b, weight, dense), cotangent)
    assert_close(actual[0], of_b, DOUBLE)
    assert_close(actual[1], of_weight, DOUBLE)
    rows = batch.adjacency.pattern.rows
    in_row_order = of_dense[rows.col, rows.row]
    given = batch.adjacency.with_values(actual[2]).row_values()
    assert_close(given, in_row_order, DOUBLE)


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("gradient", [dk.Implicit(solver=dk.FixedPoint(**TIGHT)), *BIASED])
def test_graph_gradients_are_those_of_the_layer(gradient: dk.Gradient, activation: str) -> None:
    """Graph by graph, for the directed A."""
    batch = graph_batch()
    tensors = leaves(batch)
    cotangent = torch.randn_like(batch.b)
    solve = of_graphs(batch, activation, gradient=gradient)
    of_b, of_weight, of_values = torch.autograd.grad(solve(*tensors), tensors, cotangent)

    expected_weight = torch.zeros_like(of_weight)
    of_dense = torch.zeros_like(batch.dense)
    start = 0
    for size in SIZES:
        rows = slice(start, start + size)
        start += size
        if not size:
            continue
        b = batch.b[rows].clone().requires_grad_()
        weight = batch.weight.clone().requires_grad_()
        dense = batch.dense[rows, rows].clone().requires_grad_()
        layer = dk.DEQ(
            lambda z, dense=dense, weight=weight, b=b: batch.cell(z, weight, dense, b, activation),
            solver=dk.FixedPoint(**TIGHT),
            gradient=gradient,
        )
        z = layer(torch.zeros(1, *b.shape, dtype=DOUBLE))[0]
        gradients = torch.autograd.grad(z, (b, weight, dense), cotangent[rows])
        assert_close(of_b[rows], gradients[0], DOUBLE)
        expected_weight += gradients[1]
        of_dense[rows, rows] = gradients[2]
    assert_close(of_weight, expected_weight, DOUBLE)
    rows_of = batch.adjacency.pattern.rows
    given = batch.adjacency.with_values(of_values).row_values()
    assert_close(given, of_dense[rows_of.col, rows_of.row], DOUBLE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gradient", [dk.Implicit(solver=dk.FixedPoint(**TIGHT)), *BIASED])
def test_dense_gradients_are_those_of_the_layer(gradient: dk.Gradient, activation: str) -> None:
    u = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    weight = contraction(5).requires_grad_()
    cotangent = torch.randn(4, 5, dtype=DOUBLE)
    z = solve_dense(u, weight, activation=activation, gradient=gradient, **TIGHT)
    layer = dk.DEQ(
        lambda z, u: value(Activation[activation.upper()], z @ weight.T + u),
        solver=dk.FixedPoint(**TIGHT),
        gradient=gradient,
    )
    expected = torch.autograd.grad(layer(torch.zeros_like(u), u), (u, weight), cotangent)
    for one, other in zip(torch.autograd.grad(z, (u, weight), cotangent), expected, strict=True):
        assert_close(one, other, DOUBLE)


def test_a_symmetric_adjacency_gives_the_gradients_of_both_copies() -> None:
    batch = graph_batch(symmetric=True)
    rows = batch.adjacency.pattern.rows
    both = type(batch.adjacency).from_coo(
        torch.stack([rows.col, rows.row]),
        batch.adjacency.row_values(),
        nodes=len(batch.b),
        graph_ptr=batch.adjacency.graph_ptr,
    )
    found = []
    for adjacency in (batch.adjacency, both):
        b = batch.b.clone().requires_grad_()
        z = solve_graph(b, batch.weight, adjacency, activation="elu", **TIGHT)
        found.append(torch.autograd.grad(z.sum(), b)[0])
    assert_close(found[0], found[1], DOUBLE)


@same_bits
def test_a_rows_gradient_does_not_depend_on_its_neighbours() -> None:
    weight, u = contraction(9).float(), torch.randn(33, 9)

    def gradient(u: Tensor) -> Tensor:
        u = u.clone().requires_grad_()
        z = solve_dense(u, weight, activation="gelu", rtol=1e-5)
        return torch.autograd.grad(z.square().sum(), u)[0]

    with dk.use_backend("native"):
        together = gradient(u)
        for rows in (slice(0, 1), slice(5, 12), slice(32, 33)):
            assert torch.equal(together[rows], gradient(u[rows]))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_adjoint_is_solved_however_small_or_large_the_loss(scale: float) -> None:
    """The absolute tolerance is on the scaled equation."""
    batch = graph_batch()
    b, weight = batch.b.float().requires_grad_(), batch.weight.float()
    adjacency = batch.adjacency.to(dtype=torch.float32)
    z = solve_graph(b, weight, adjacency, activation="tanh", norm="max", rtol=0.0, atol=3e-6)
    (plain,) = torch.autograd.grad(z, b, torch.ones_like(z), retain_graph=True)
    (scaled,) = torch.autograd.grad(z, b, scale * torch.ones_like(z))
    assert_close(scaled.double() / scale, plain, torch.float32)


def test_an_implicit_gradient_has_the_tolerance_of_the_solve_or_its_own() -> None:
    batch = graph_batch()
    adjoints: list[dk.Solution] = []
    own = dk.FixedPoint(max_steps=7, rtol=1e-12, damping=0.9)
    for gradient, length in (
        (dk.Implicit(on_solve=adjoints.append), 21),
        (dk.Implicit(solver=own, on_solve=adjoints.append), 7),
    ):
        b = batch.b.clone().requires_grad_()
        z = solve_graph(
            b,
            batch.weight,
            batch.adjacency,
            activation="tanh",
            max_steps=21,
            gradient=gradient,
            on_solve="ignore",
        )
        z.sum().backward()
        solution = adjoints.pop()
        assert solution.trace.shape == (len(SIZES), length)
        assert not adjoints
    assert solution.status[0] == dk.Status.MAX_STEPS


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("solver", [None, dk.FixedPoint(rtol=0.0, atol=1e-5)])
def test_the_adjoint_is_measured_in_the_norm_of_the_solve(
    solver: dk.Solver | None, norm: str
) -> None:
    seen: list[dk.Solution] = []
    gradient = dk.Implicit(on_solve=seen.append)
    if solver is not None:
        gradient = dk.Implicit(solver=solver, on_solve=seen.append)
    weight, u = contraction(4), torch.zeros(1, 4, dtype=DOUBLE, requires_grad=True)
    z = solve_dense(u, weight, activation="identity", norm=norm, gradient=gradient)
    cotangent = torch.tensor([[0.5, -0.25, 0.625, 0.5]], dtype=DOUBLE)  # of the scale already
    torch.autograd.grad(z, u, cotangent)
    order = 2.0 if norm == "l2" else torch.inf
    first = torch.linalg.vector_norm(cotangent @ weight, order)
    torch.testing.assert_close(seen[0].trace[0, 0], first)


def test_second_derivatives_report_their_solves() -> None:
    batch = graph_batch()
    seen: list[dk.Solution] = []
    b, weight, _ = leaves(batch)
    solve = of_graphs(batch, "tanh", gradient=dk.Implicit(on_solve=seen.append))
    (first,) = torch.autograd.grad(solve(b, weight).square().sum(), b, create_graph=True)
    assert len(seen) == 1
    first.square().sum().backward()
    assert len(seen) == 3  # the equation in J for w, and that in Jᵀ for z
    assert all(solution.converged.all() for solution in seen)


def test_only_what_requires_a_gradient_gets_one() -> None:
    batch = graph_batch()
    for chosen in range(3):
        tensors = leaves(batch)
        for index, tensor in enumerate(tensors):
            tensor.requires_grad_(index == chosen)
        of_graphs(batch, "tanh")(*tensors).sum().backward()
        assert [tensor.grad is not None for tensor in tensors] == [
            index == chosen for index in range(3)
        ]
    tensors = tuple(tensor.detach() for tensor in leaves(batch))
    assert not of_graphs(batch, "tanh")(*tensors).requires_grad
    with torch.no_grad():
        assert not of_graphs(batch, "tanh")(*leaves(batch)).requires_grad
