"""Solves of structured cells against the generic path and dense algebra."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from deq_kernels.ops.cells import Activation, value
from python_tests.cells.batches import (
    ACTIVATIONS,
    DOUBLE,
    SIZES,
    contraction,
    exact,
    graph_batch,
    jacobian,
    same_bits,
)
from python_tests.cells.solves import solve_dense, solve_graph
from python_tests.tolerances import assert_close

TIGHT: dict[str, Any] = {"rtol": 1e-14, "max_steps": 400, "stall_steps": None}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_graphs_are_solved(activation: str, symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric)
    z = solve_graph(batch.b, batch.weight, batch.adjacency, activation=activation, **TIGHT)
    assert_close(z, exact(batch, activation), DOUBLE)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_linear_graph_cell_is_its_kronecker_system(symmetric: bool) -> None:
    batch = graph_batch(symmetric=symmetric)
    z = solve_graph(batch.b, batch.weight, batch.adjacency, activation="identity", **TIGHT)
    matrix = jacobian(batch, z, "identity")
    solved = torch.linalg.solve(torch.eye(len(matrix), dtype=DOUBLE) - matrix, batch.b.flatten())
    assert_close(z.flatten(), solved, DOUBLE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1, 5])
def test_dense_cells_are_solved_as_by_the_layer(activation: str, size: int) -> None:
    weight, u = contraction(size), torch.randn(4, size, dtype=DOUBLE)

    def cell(z: Tensor) -> Tensor:
        return value(Activation[activation.upper()], z @ weight.T + u)

    for solver in (dk.FixedPoint(**TIGHT), dk.Broyden(**{**TIGHT, "rtol": 1e-13})):
        expected = dk.DEQ(lambda z, cell=cell: cell(z), solver=solver)(torch.zeros_like(u))
        assert_close(solve_dense(u, weight, activation=activation, **TIGHT), expected, DOUBLE)


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("max_steps", [60, 9])
def test_steps_statuses_and_traces_are_those_of_the_fixed_point_solver(
    damping: float, max_steps: int
) -> None:
    """A graph is a sample; the generic solver takes each of them alone."""
    batch = graph_batch()
    options: dict[str, Any] = {
        "rtol": 1e-6,
        "atol": 1e-9,
        "max_steps": max_steps,
        "damping": damping,
    }
    seen: list[dk.Solution] = []
    solve_graph(
        batch.b,
        batch.weight,
        batch.adjacency,
        activation="tanh",
        norm="l2",
        accelerate=False,
        on_solve=seen.append,
        **options,
    )
    (solution,) = seen
    z = solution.z
    assert isinstance(z, Tensor)
    assert len(solution.status) == len(SIZES)
    assert solution.evaluations == int(solution.steps.sum())
    start = 0
    for graph, size in enumerate(SIZES):
        rows = slice(start, start + size)
        start += size
        if not size:
            assert solution.converged[graph]
            continue
        dense, b = batch.dense[rows, rows], batch.b[rows]
        alone = dk.FixedPoint(**options)(
            lambda x, dense=dense, b=b: batch.cell(x, batch.weight, dense, b, "tanh"),
            torch.zeros_like(b)[None],
        )
        assert solution.steps[graph] == alone.steps[0]
        assert solution.status[graph] == alone.status[0]
        assert isinstance(alone.z, Tensor)
        assert_close(z[rows], alone.z[0], DOUBLE)
        assert_close(solution.residual[graph], alone.residual[0], torch.float32)
        steps = int(solution.steps[graph])
        assert_close(solution.trace[graph, :steps], alone.trace[0, :steps], torch.float32)


def test_the_max_norm_is_that_of_the_largest_element() -> None:
    batch = graph_batch()
    seen: list[dk.Solution] = []
    solve_graph(
        batch.b,
        batch.weight,
        batch.adjacency,
        activation="relu",
        norm="max",
        rtol=0.0,
        atol=3e-6,
        on_solve=seen.append,
    )
    (solution,) = seen
    z = solution.z
    assert isinstance(z, Tensor)
    moved = (batch.cell(z, batch.weight, batch.dense, batch.b, "relu") - z).abs()
    assert solution.converged.all()
    assert 0.0 < moved.max() <= 3e-6
    assert_close(solution.residual.max(), moved.max(), torch.float32)


@same_bits
def test_dense_rows_are_samples_and_never_change_each_other() -> None:
    weight, u = contraction(7).float(), torch.randn(9, 7)
    u[3] *= 1e6
    seen: list[dk.Solution] = []

    def solve(u: Tensor) -> Tensor:
        return solve_dense(u, weight, activation="softplus", rtol=1e-5, on_solve=seen.append)

    with dk.use_backend("native"):
        z = solve(u)
        assert len(set(seen[0].steps.tolist())) > 1
        for row in range(len(u)):
            assert torch.equal(z[row : row + 1], solve(u[row : row + 1]))


def test_a_graph_never_changes_its_neighbours() -> None:
    batch = graph_batch()
    z = solve_graph(batch.b, batch.weight, batch.adjacency, activation="tanh")
    b = batch.b.clone()
    b[0] = torch.nan
    seen: list[dk.Solution] = []
    other = solve_graph(b, batch.weight, batch.adjacency, activation="tanh", on_solve=seen.append)
    assert seen[0].status[0] == dk.Status.DIVERGED
    assert torch.equal(other[SIZES[0] :], z[SIZES[0] :])


def test_the_start_is_taken_and_left_alone() -> None:
    batch = graph_batch()
    z0 = exact(batch, "tanh").requires_grad_()
    before = z0.detach().clone()
    seen: list[dk.Solution] = []
    z = solve_graph(
        batch.b,
        batch.weight.requires_grad_(),
        batch.adjacency,
        activation="tanh",
        z0=z0,
        on_solve=seen.append,
    )
    assert (seen[0].steps == 1).all()
    assert torch.equal(z0, before)
    z.sum().backward()
    assert z0.grad is None


def test_the_output_and_what_is_handed_out_are_the_callers() -> None:
    """Changing one in place changes neither the other nor the gradient."""
    weight, u = contraction(3), torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    plain = solve_dense(u, weight, activation="tanh")
    (expected,) = torch.autograd.grad(plain.sum(), u)

    def spoil(solution: dk.Solution) -> None:
        assert isinstance(solution.z, Tensor)
        solution.z.zero_()

    z = solve_dense(u, weight, activation="tanh", on_solve=spoil)
    assert torch.equal(z, plain)
    z += 1.0
    assert torch.equal(torch.autograd.grad(z.sum(), u)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(dtype: torch.dtype) -> None:
    batch = graph_batch()
    b, weight = (x.to(dtype).requires_grad_() for x in (batch.b, batch.weight))
    adjacency = batch.adjacency.to(dtype=dtype)
    values = adjacency.values.detach().clone().requires_grad_()
    z = solve_graph(b, weight, adjacency.with_values(values), activation="tanh", rtol=1e-6)
    assert z.dtype == dtype
    rounded = replace(batch, b=b.detach().double(), weight=weight.detach().double())
    rounded = replace(rounded, dense=batch.dense.to(dtype).double())
    assert_close(z.detach(), exact(rounded, "tanh"), dtype)
    z.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (b, weight, values))


def test_nothing_to_solve() -> None:
    weight = contraction(3).requires_grad_()
    u = torch.zeros(0, 3, dtype=DOUBLE, requires_grad=True)
    solve_dense(u, weight, activation="relu").sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3, 3, dtype=DOUBLE))
    no_nodes = Adjacency.from_coo(torch.zeros(2, 0, dtype=torch.int64), nodes=0).to(dtype=DOUBLE)
    z = solve_graph(u, weight, no_nodes, activation="relu")
    z.sum().backward()
    assert z.shape == (0, 3)


def test_autocast_changes_nothing() -> None:
    weight, u = contraction(5).float().requires_grad_(), torch.randn(3, 5)
    plain = solve_dense(u, weight, activation="gelu")
    (expected,) = torch.autograd.grad(plain.sum(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        z = solve_dense(u, weight, activation="gelu")
        (actual,) = torch.autograd.grad(z.sum(), weight)
    assert torch.equal(z, plain)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"activation": "swish"}, "activation must be one of 'identity', 'relu'"),
        ({"activation": None}, "activation must be one of"),
        ({"max_steps": 0}, "max_steps must be a whole number"),
        ({"rtol": -1.0}, "rtol must be finite and at least 0"),
        ({"atol": float("nan")}, "atol must be"),
        ({"norm": "l1"}, "norm must be one of 'rows', 'l2', 'max'"),
        ({"damping": 0.0}, "damping must be above 0"),
        ({"stall_steps": 0}, "stall_steps must be"),
        ({"divergence_factor": 1.0}, "divergence_factor must be above 1"),
        ({"z0": torch.zeros(3, 4)}, r"state must have the shape of b, \[2, 3\]; got \[3, 4\]"),
        ({"b": torch.zeros(3)}, r"b must be \[rows, n\]"),
        ({"b": torch.zeros(3, 0)}, "n at least 1"),
        ({"weight": torch.zeros(2, 3)}, r"weight must be \[n, n\].*\[3, 3\]; got \[2, 3\]"),
    ],
)
def test_options_out_of_range(option: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"b": torch.zeros(2, 3), "weight": torch.zeros(3, 3)}
    arguments |= {"activation": "tanh", **option}
    with pytest.raises(ValueError, match=message):
        solve_dense(**arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"b": [1.0]}, "b must be a tensor; got list"),
        ({"b": torch.zeros(2, 3, dtype=torch.int64)}, "A state must be one of"),
        ({"weight": torch.zeros(3, 3, dtype=DOUBLE)}, "weight must have the dtype and device of b"),
        ({"adjacency": torch.eye(2)}, "adjacency must be an Adjacency; got Tensor"),
        ({"z0": 0.0}, r"state must be a tensor \[rows, n\]; got float"),
        ({"z0": torch.zeros(2, 3, dtype=DOUBLE)}, "z must have the dtype and device of b"),
        (
            {"gradient": "implicit"},
            "gradient must be a deq_kernels.Gradient; got 'implicit'",
        ),
        ({"on_solve": 3}, "on_solve must be one of 'warn', 'raise', 'ignore', or callable"),
        ({"tolerance": 1.0}, "FixedPoint got an unexpected keyword argument 'tolerance'"),
    ],
)
def test_wrong_kinds(option: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "b": torch.zeros(2, 3),
        "weight": torch.zeros(3, 3),
        "adjacency": Adjacency.from_coo(torch.zeros(2, 0, dtype=torch.int64), nodes=2),
        "activation": "tanh",
    }
    with pytest.raises(TypeError, match=message):
        solve_graph(**(arguments | option))


def test_an_adjacency_must_fit() -> None:
    index = torch.tensor([[0, 1], [1, 0]])
    adjacency = Adjacency.from_coo(index, nodes=2)
    b, weight = torch.zeros(2, 3), torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"one row per node of the adjacency, 2; got \[3, 3\]"):
        solve_graph(weight, weight, adjacency, activation="relu")
    with pytest.raises(TypeError, match="adjacency must have the dtype and device of b"):
        solve_graph(b, weight, adjacency.to(dtype=DOUBLE), activation="relu")
    symmetric = Adjacency.from_coo(index, nodes=2, symmetric=True)
    symmetric.values.requires_grad_()
    with pytest.raises(ValueError, match="values that require no gradient"):
        solve_graph(b, weight, symmetric, activation="relu")
