"""The unrolled gradient of structured cells is that of the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops.cells import Activation, value
from python_tests.cells.batches import ACTIVATIONS, DOUBLE, contraction, graph_batch
from python_tests.cells.solves import solve_dense, solve_graph
from python_tests.tolerances import assert_close

LOOSE: dict[str, Any] = {"rtol": 1e-2, "max_steps": 20}
"""Where z* is no fixed point, the states of UPG differ from z*, and its gradient from NPG's."""

UPG = dk.Unrolled(steps=4, damping=0.6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense(activation: str) -> None:
    u = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    weight = contraction(5).requires_grad_()
    cotangent = torch.randn(4, 5, dtype=DOUBLE)
    z = solve_dense(u, weight, activation=activation, accelerate=False, gradient=UPG, **LOOSE)
    layer = dk.DEQ(
        lambda z, u: value(Activation[activation.upper()], z @ weight.T + u),
        solver=dk.FixedPoint(**LOOSE),
        gradient=UPG,
    )
    expected = layer(torch.zeros_like(u), u)
    assert_close(z, expected, DOUBLE)
    for one, other in zip(
        torch.autograd.grad(z, (u, weight), cotangent),
        torch.autograd.grad(expected, (u, weight), cotangent),
        strict=True,
    ):
        assert_close(one, other, DOUBLE)


@pytest.mark.parametrize("damping", [0.5, 1.0])
def test_graphs(damping: float) -> None:
    """Against autograd through dense steps, for a directed A and the gradient of its values."""
    batch = graph_batch()
    states: list[Tensor] = []
    gradient = dk.Unrolled(steps=3, damping=damping, on_states=states.extend)
    leaves = [
        tensor.detach().clone().requires_grad_()
        for tensor in (batch.b, batch.weight, batch.adjacency.values)
    ]
    b, weight, values = leaves
    adjacency = batch.adjacency.with_values(values)
    options: dict[str, Any] = {"activation": "tanh", "gradient": gradient} | LOOSE
    z = solve_graph(b, weight, adjacency, **options)
    assert len(states) == 3
    assert torch.equal(states[-1], z)
    with torch.no_grad():
        h = solve_graph(b, weight, adjacency, **options)
    assert len(states) == 3  # nothing is unrolled without autograd
    assert not torch.equal(h, z)
    rows = batch.adjacency.pattern.rows
    in_order = adjacency.row_values()
    dense = torch.zeros_like(batch.dense).index_put((rows.col, rows.row), in_order)
    for _ in range(3):
        h = damping * batch.cell(h, weight, dense, b, "tanh") + (1 - damping) * h
    assert_close(z, h, DOUBLE)
    cotangent = torch.randn_like(z)
    for one, other in zip(
        torch.autograd.grad(z, leaves, cotangent),
        torch.autograd.grad(h, leaves, cotangent),
        strict=True,
    ):
        assert_close(one, other, DOUBLE)


def test_it_is_neumann_at_a_fixed_point() -> None:
    batch = graph_batch()
    weight = batch.weight.clone().requires_grad_()
    gradients = []
    for gradient in (UPG, dk.Neumann(steps=4, damping=0.6)):
        z = solve_graph(
            batch.b,
            weight,
            batch.adjacency,
            activation="tanh",
            rtol=1e-14,
            stall_steps=None,
            gradient=gradient,
        )
        gradients.append(torch.autograd.grad(z.square().sum(), weight)[0])
    torch.testing.assert_close(*gradients)


def test_second_derivatives_are_those_of_the_recorded_steps() -> None:
    u = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    weight = contraction(3).requires_grad_()
    z = solve_dense(u, weight, activation="tanh", gradient=UPG)
    with torch.no_grad():
        h = solve_dense(u, weight, activation="tanh", gradient=UPG)
    for _ in range(UPG.steps):
        h = torch.lerp(h, torch.tanh(h @ weight.T + u), UPG.damping)
    seconds = []
    for state in (z, h):
        (first,) = torch.autograd.grad(state.square().sum(), weight, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), (u, weight)))
    for one, other in zip(*seconds, strict=True):
        assert_close(one, other, DOUBLE)


def test_under_autocast() -> None:
    u = torch.randn(4, 5, requires_grad=True)
    weight = contraction(5).float().requires_grad_()
    expected = solve_dense(u, weight, activation="tanh", gradient=UPG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = solve_dense(u, weight, activation="tanh", gradient=UPG)
    assert torch.equal(z, expected)


@pytest.mark.parametrize(
    "gradient",
    [dk.Implicit(), dk.Neumann(), dk.JacobianFree(), dk.Unrolled(damping=1.0)],
    ids=lambda g: type(g).__name__,
)
def test_solutions_may_be_changed_in_place(gradient: dk.Gradient) -> None:
    u = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    weight = contraction(5).requires_grad_()

    def solve() -> Tensor:
        return solve_dense(u, weight, activation="tanh", gradient=gradient)

    expected = torch.autograd.grad((solve() + 0.1).relu().square().sum(), (u, weight))
    actual = torch.autograd.grad(solve().add_(0.1).relu_().square().sum(), (u, weight))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, DOUBLE)
