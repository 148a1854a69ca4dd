"""Structured cells in a layer: the one op and the steps of any solver give one answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from deq_kernels.cells import Adjacency, DenseCell, GraphCell
from python_tests.cells.batches import DOUBLE, SIZES, GraphBatch, contraction, exact, graph_batch
from python_tests.tolerances import assert_close

TIGHT: dict[str, Any] = {"max_steps": 400, "rtol": 1e-13, "stall_steps": None}
SOLVERS = (dk.Broyden(**TIGHT), dk.Anderson(**TIGHT), dk.FixedPoint(**TIGHT, damping=0.8))
ADJOINT = dk.FixedPoint(**TIGHT)
EXACT = (
    dk.Implicit(solver=ADJOINT),
    dk.Implicit(solver=dk.GMRES(**TIGHT)),
    dk.Adaptive(tolerance=1e-12, max_steps=100),
    dk.Limited(steps=60),
)


def found(cell: nn.Module, batch: GraphBatch, **options: Any) -> tuple[Tensor, ...]:
    """A layer's answer, and the gradients of b and W."""
    b = batch.b.clone().requires_grad_()
    weight = batch.weight.clone().requires_grad_()
    layer = dk.DEQ(cell, **options)
    z = layer(torch.zeros_like(b), b, weight=weight)
    cotangent = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).view_as(z)
    return z.detach(), *torch.autograd.grad(z, (b, weight), cotangent)


def graph_cell(batch: GraphBatch, **options: Any) -> GraphCell:
    return GraphCell(None, batch.adjacency, activation="tanh", **options)


@pytest.mark.parametrize("gradient", EXACT, ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("graphs", [True, False])
def test_every_solver_and_gradient_has_the_answer_of_the_one_op(
    graphs: bool, solver: dk.Solver, gradient: dk.Gradient
) -> None:
    if isinstance(gradient, dk.Adaptive) and not solver.builds_inverse:
        pytest.skip("the gradient needs the estimate of a Broyden solve")
    batch = graph_batch()
    cell = graph_cell(batch) if graphs else DenseCell(activation="tanh")
    expected = found(cell, batch, solver=ADJOINT, gradient=dk.Implicit(solver=ADJOINT))
    for one, other in zip(
        found(cell, batch, solver=solver, gradient=gradient), expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "gradient",
    [dk.Neumann(steps=3), dk.JacobianFree(), dk.Unrolled(steps=3), dk.Implicit(solver=ADJOINT)],
    ids=repr,
)
def test_one_op_can_be_declined(gradient: dk.Gradient) -> None:
    batch = graph_batch()
    results = []
    for one_op in (True, False):
        cell = graph_cell(batch, one_op=one_op)
        layer = dk.DEQ(cell, solver=ADJOINT, gradient=gradient)
        assert layer.solves_in_one_op() is one_op
        results.append(found(cell, batch, solver=ADJOINT, gradient=gradient))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, DOUBLE)


def test_who_solves_in_one_op() -> None:
    cell = DenseCell(torch.zeros(2, 2), activation="relu")
    layer = dk.DEQ(cell, solver=dk.FixedPoint(), eval_solver=dk.Broyden())
    assert layer.solves_in_one_op()
    assert not layer.eval().solves_in_one_op()
    assert not layer.solves_in_one_op(dk.FixedPoint(synchronized=True))
    for gradient in (dk.Implicit(solver=dk.GMRES()), dk.Limited(), dk.JacobianFree(refine=1)):
        assert not dk.DEQ(cell, solver=dk.FixedPoint(), gradient=gradient).solves_in_one_op()
    for gradient in (dk.Implicit(solver=dk.FixedPoint()), dk.Neumann(), dk.Unrolled()):
        assert dk.DEQ(cell, solver=dk.FixedPoint(), gradient=gradient).solves_in_one_op()
    assert not dk.DEQ(nn.Linear(2, 2), solver=dk.FixedPoint()).solves_in_one_op()


@pytest.mark.parametrize("solver", [dk.FixedPoint(**TIGHT), dk.Broyden(**TIGHT)], ids=repr)
def test_a_solution_is_per_graph_and_node_major(solver: dk.Solver) -> None:
    batch = graph_batch()
    layer = dk.DEQ(graph_cell(batch), solver=solver)
    with torch.no_grad():
        y = layer(torch.zeros_like(batch.b), batch.b, weight=batch.weight)
    solution = layer.last_solution
    assert solution is not None
    assert solution.z.shape == batch.b.shape
    assert solution.status.shape == (len(SIZES),)
    assert_close(y, exact(batch, "tanh"), DOUBLE)
    assert_close(
        y, batch.cell(solution.z, batch.weight, batch.dense, batch.b, "tanh"), torch.float64
    )


def test_what_a_cell_was_made_with_and_what_a_call_gives() -> None:
    batch = graph_batch()
    weight = nn.Parameter(batch.weight)
    own = dk.DEQ(GraphCell(weight, batch.adjacency, activation="relu"), solver=ADJOINT)
    assert list(own.parameters()) == [weight]
    given = dk.DEQ(GraphCell(activation="relu"), solver=ADJOINT)
    assert not given.state_dict()
    z0 = torch.zeros_like(batch.b)
    y = given(z0, batch.b, batch.adjacency, weight=weight)
    assert torch.equal(own(z0, batch.b), y)
    with pytest.raises(ValueError, match="made without a weight"):
        given(z0, batch.b, batch.adjacency)
    with pytest.raises(ValueError, match="made without an adjacency"):
        given(z0, batch.b, weight=weight)
    assert torch.equal(own.cell(z0, batch.b), torch.relu(batch.b))
    with pytest.raises(TypeError, match="weight must be a tensor or None; got list"):
        GraphCell([1.0], activation="relu")
    with pytest.raises(TypeError, match="adjacency must be an Adjacency; got Tensor"):
        GraphCell(weight, torch.eye(2), activation="relu")


def test_a_cell_moves_with_its_module() -> None:
    batch = graph_batch()
    layer = dk.DEQ(GraphCell(nn.Parameter(batch.weight), batch.adjacency, activation="relu"))
    copied = copy.deepcopy(layer).float()
    assert copied.cell.adjacency.dtype == torch.float32
    assert layer.cell.adjacency.dtype == DOUBLE
    b = batch.b.float()
    assert copied(torch.zeros_like(b), b).dtype == torch.float32


@pytest.mark.parametrize("one_op", [True, False])
def test_a_warm_start_is_for_the_same_graphs(one_op: bool) -> None:
    batch = graph_batch()
    cell = graph_cell(batch, one_op=one_op)
    layer = dk.DEQ(cell, solver=dk.FixedPoint(max_steps=200, rtol=1e-10), warm_start=True)
    z0 = torch.zeros_like(batch.b)
    steps = []
    one_graph = Adjacency.from_coo(torch.zeros(2, 0, dtype=torch.int64), nodes=len(batch.b)).to(
        dtype=DOUBLE
    )
    for adjacency in (batch.adjacency, batch.adjacency, one_graph, batch.adjacency):
        layer(z0, batch.b, adjacency, weight=batch.weight)
        assert layer.last_solution is not None
        steps.append(int(layer.last_solution.steps.max()))
    assert steps[0] > 5
    assert steps[1] == 1
    assert steps[3] == steps[0]


def test_compaction() -> None:
    """Of rows; the graphs of a batch have one product."""
    weight, b = contraction(4), torch.randn(6, 4, dtype=DOUBLE)
    b[0] *= 1e-6
    solver = dk.FixedPoint(**TIGHT, compact=True)
    layer = dk.DEQ(DenseCell(weight, activation="tanh"), solver=solver, per_sample=(0,))
    z0 = torch.zeros_like(b)
    plain = dk.DEQ(DenseCell(weight, activation="tanh"), solver=dk.FixedPoint(**TIGHT))
    assert_close(layer(z0, b), plain(z0, b), DOUBLE)
    batch = graph_batch()
    layer = dk.DEQ(graph_cell(batch), solver=solver, per_sample=())
    with pytest.raises(ValueError, match="must be solved with compact=False"):
        layer(torch.zeros_like(batch.b), batch.b, weight=batch.weight)


def test_softplus_is_the_same_in_one_op_and_step_by_step() -> None:
    """Beyond 20 too, where torch's own is the identity."""
    b = torch.tensor([[25.0]], dtype=DOUBLE)
    weight = torch.zeros(1, 1, dtype=DOUBLE)
    expected = b + torch.log1p(torch.exp(-b))
    assert not torch.equal(expected, b)
    for one_op in (True, False):
        cell = DenseCell(weight, activation="softplus", one_op=one_op)
        y = dk.DEQ(cell, solver=dk.FixedPoint())(torch.zeros_like(b), b)
        torch.testing.assert_close(y, expected, rtol=1e-15, atol=0.0)
