"""Samples that had converged and are moved from their solution by others are told of."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk

DOUBLE = torch.float64
SOLVERS = {
    "broyden": dk.Broyden(),
    "anderson": dk.Anderson(),
    "fixed_point": dk.FixedPoint(),
    "adjoint_broyden": dk.AdjointBroyden(),
    "gmres": dk.GMRES(),
    "lbfgs": dk.LBFGS(),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def chain(nodes: int = 12) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A directed chain with an input at its first node, and its solution.

    Every other node is a fixed point of z = 0 until the one before it moves.
    """
    before = torch.diag(torch.ones(nodes - 1, dtype=DOUBLE), -1)
    inputs = torch.zeros(nodes, 3, dtype=DOUBLE)
    inputs[0] = 1.0

    def f(x: Tensor) -> Tensor:
        return torch.tanh(0.9 * (before @ x) + inputs)

    z = torch.zeros_like(inputs)
    for _ in range(nodes):
        z = f(z)
    assert torch.equal(f(z), z)
    return f, z


@every_solver
def test_nodes_of_a_graph_as_samples(solver: dk.Solver) -> None:
    f, right = chain()
    with pytest.warns(dk.CoupledSamplesWarning, match="of 12 samples had converged"):
        solver(f, torch.zeros_like(right))


@pytest.mark.parametrize("solver", [dk.Broyden(), dk.Anderson(), dk.FixedPoint()], ids=str)
def test_the_same_graph_as_one_sample(solver: dk.Solver) -> None:
    f, right = chain()
    solution = solver(lambda z: f(z[0])[None], torch.zeros_like(right)[None])
    torch.testing.assert_close(solution.z[0], right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [dk.Broyden, dk.Anderson])
def test_batch_statistics_in_the_map(make: type[dk.Solver]) -> None:
    solver = make(max_steps=80, rtol=1e-3)
    normalise = nn.BatchNorm1d(6).double()
    linear = nn.Linear(6, 6).double()
    nn.init.constant_(normalise.weight, 0.5)
    x = torch.randn(8, 6, dtype=DOUBLE) * torch.logspace(-3, 1, 8, dtype=DOUBLE)[:, None]
    z0 = torch.zeros_like(x)
    with pytest.warns(dk.CoupledSamplesWarning, match=r"BatchNorm in training mode"):
        solver(lambda z: torch.tanh(normalise(linear(z)) + x), z0)
    normalise.eval()
    solver(lambda z: torch.tanh(normalise(linear(z)) + x), z0)


@every_solver
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_independent_samples_that_stop_at_different_times(
    solver: dk.Solver, dtype: torch.dtype, shift: float
) -> None:
    """Nothing is told; a warning is an error here."""
    slopes = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=dtype)[:, None]
    solution = solver(lambda z: slopes * z + shift, torch.ones(4, 5, dtype=dtype))
    assert len(set(solution.steps.tolist())) > 1 or isinstance(solver, dk.GMRES)


@pytest.mark.parametrize(("weight", "told"), [(1e-5, False), (1e-2, True)])
def test_a_coupling_within_the_tolerance_is_let_pass(weight: float, told: bool) -> None:
    """Sample 0 stops at once; sample 1 moves by 1 afterwards, and with it f of sample 0."""

    def f(z: Tensor) -> Tensor:
        first = 1.0 + weight * z[1]
        return torch.stack([first, 0.5 * z[1] + 0.5])

    z0 = torch.tensor([[1.0], [0.0]], dtype=DOUBLE)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        dk.FixedPoint(rtol=1e-4)(f, z0)
    assert [warning.category for warning in heard] == [dk.CoupledSamplesWarning] * told


def test_f_that_becomes_nan_is_told_of() -> None:
    def f(z: Tensor) -> Tensor:
        first = torch.where(z[1] > 0, torch.nan, z[0])
        return torch.stack([first, 0.5 * z[1] + 0.5])

    with pytest.warns(dk.CoupledSamplesWarning, match="1 of 2 samples"):
        dk.FixedPoint()(f, torch.zeros(2, 1))


def test_compact_solves_do_not_look() -> None:
    """f is not evaluated at samples that have stopped."""
    f, right = chain()
    assert dk.Broyden(compact=True)(
        dk.PerSample(lambda z: f(right)[: len(z)]), torch.zeros_like(right)
    ).converged.all()


@pytest.mark.parametrize(
    "gradient",
    [dk.Implicit(), dk.Adaptive(), dk.Limited(steps=20), dk.JacobianFree(refine=20)],
    ids=lambda gradient: type(gradient).__name__,
)
def test_a_loss_on_one_node_of_a_graph(gradient: dk.Gradient) -> None:
    """The forward solve starts at the solution; of the adjoint, all but one node start solved."""
    f, right = chain()
    layer = dk.DEQ(lambda z, x: f(z) + x, gradient=gradient)
    x = torch.zeros_like(right, requires_grad=True)
    loss = layer(right, x)[-1].sum()
    with pytest.warns(dk.CoupledSamplesWarning, match="In a DEQ layer"):
        loss.backward()


def test_a_layer_tells_once() -> None:
    f, right = chain()
    layer = dk.DEQ(f)
    z0 = torch.zeros_like(right)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        layer(z0)
        layer(z0)
    assert len(heard) == 1
    assert heard[0].filename == __file__


@every_solver
@pytest.mark.parametrize("shape", [(3,), (0,)])
def test_a_state_without_a_batch_dimension(solver: dk.Solver, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z0 must be \[batch, ...\].*z0\[None\].*z0\[:, None\]"):
        solver(lambda z: 0.5 * z, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"z0 must be \[batch, ...\]"):
        dk.DEQ(lambda z: 0.5 * z, solver=solver)(torch.zeros(shape))


def test_a_part_of_a_state_may_be_one_number_per_sample() -> None:
    z0 = (torch.ones(3), torch.ones(3, 2))
    solution = dk.Broyden()(lambda z: (0.5 * z[0], 0.5 * z[1]), z0)
    assert [part.shape for part in solution.z] == [(3,), (3, 2)]
    with pytest.raises(ValueError, match="one row per problem"):
        dk.Broyden()(lambda z: z, (torch.ones(3), torch.ones(3)))
