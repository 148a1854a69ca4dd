"""Second derivatives of cells whose graph has leaves of its own, or leaves that are sparse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from python_tests.problems import matrix_of_norm

SOLVER = dk.Broyden(max_steps=80, rtol=1e-12)
EXACT = dk.Implicit(solver=dk.GMRES(max_steps=60, rtol=1e-12))
UNROLLED = dk.Unrolled(steps=30, damping=1.0)
DIM = 4


def zeros() -> Tensor:
    return torch.zeros(2, DIM, dtype=torch.float64)


def leaves(count: int) -> list[Tensor]:
    weights = [matrix_of_norm(DIM, 0.5).requires_grad_() for _ in range(count)]
    return [*weights, torch.randn(2, DIM, dtype=torch.float64, requires_grad=True)]


def derivatives(output: Callable[[], Tensor], of: list[Tensor]) -> list[Tensor]:
    """The first and the second derivative of a loss."""
    first = torch.autograd.grad(output().pow(3).sum(), of)
    (slope,) = torch.autograd.grad(output().pow(3).sum(), of[-1], create_graph=True)
    return [*first, *torch.autograd.grad(slope.square().sum(), of)]


def assert_derivatives(
    cell: Callable[[dk.Gradient], Callable[..., Tensor]], of: list[Tensor]
) -> None:
    """Those of `Implicit` are those of unrolled steps, wherever `cell` uses the gradient."""

    def output(gradient: dk.Gradient) -> Tensor:
        return dk.DEQ(cell(gradient), solver=SOLVER, gradient=gradient)(zeros(), of[-1])

    expected = derivatives(lambda: output(UNROLLED), of)
    for actual, target in zip(derivatives(lambda: output(EXACT), of), expected, strict=True):
        torch.testing.assert_close(actual, target, rtol=1e-7, atol=1e-9)


def test_a_layer_within_a_layer() -> None:
    inner, outer, x = leaves(2)

    def cell(gradient: dk.Gradient) -> Callable[..., Tensor]:
        layer = dk.DEQ(lambda y, z: torch.tanh(y @ inner + z), solver=SOLVER, gradient=gradient)
        return lambda z, v: torch.tanh(layer(torch.zeros_like(z), z) @ outer + v)

    assert_derivatives(cell, [inner, outer, x])


def test_layers_that_share_an_inner_layer_and_its_input() -> None:
    """The inner layer is solved twice in each evaluation, once without z."""
    inner, x = leaves(1)

    def cell(gradient: dk.Gradient) -> Callable[..., Tensor]:
        layer = dk.DEQ(lambda y, z: torch.tanh(y @ inner + z), solver=SOLVER, gradient=gradient)

        def f(z: Tensor, v: Tensor) -> Tensor:
            start = torch.zeros_like(z)
            return 0.4 * layer(start, z) + layer(start, v)

        return f

    assert_derivatives(cell, [inner, x])


def test_a_cell_that_takes_a_gradient_at_a_leaf_of_its_own() -> None:
    """The force of an energy; autograd ends at the leaf, in unrolled steps too."""
    weight, x = leaves(1)

    def cell(_: dk.Gradient) -> Callable[..., Tensor]:
        def f(z: Tensor, v: Tensor) -> Tensor:
            with torch.enable_grad():
                point = z.detach().requires_grad_()
                energy = torch.cosh(0.3 * point @ weight).sum() + (point * v.sin()).sum()
                (force,) = torch.autograd.grad(energy, point, create_graph=True)
            return 0.3 * torch.tanh(z @ weight) + 0.2 * force

        return f

    assert_derivatives(cell, [weight, x])


def test_replaced_parameters_are_refused_by_what_they_are() -> None:
    """The leaves are others, with the same values, beside one that the cell makes each time."""
    weight, x = leaves(1)

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight.detach().clone())

        def forward(self, z: Tensor, v: Tensor) -> Tensor:
            own = torch.zeros_like(v, requires_grad=True)
            return torch.tanh(z @ self.weight + v + own)

    layer = dk.DEQ(Cell(), solver=SOLVER, gradient=EXACT)
    z = torch.func.functional_call(layer, {"cell.weight": weight}, (zeros(), x))
    first = torch.autograd.grad(z.pow(3).sum(), (weight, x), create_graph=True)
    with pytest.raises(NotImplementedError, match="parameters have been replaced since then"):
        first[1].square().sum().backward()


@pytest.mark.parametrize("given", [False, True], ids=["closed over", "an argument"])
def test_sparse_leaves(given: bool) -> None:
    weight, x = leaves(1)
    with torch.no_grad():
        sparse = torch.where(weight.abs() > 0.1, weight, 0.0).to_sparse()
    sparse.requires_grad_()

    def f(z: Tensor, v: Tensor, matrix: Tensor) -> Tensor:
        return torch.tanh(torch.sparse.mm(matrix, z.T).T + v)

    def output(gradient: dk.Gradient) -> Tensor:
        cell = f if given else lambda z, v: f(z, v, sparse)
        layer = dk.DEQ(cell, solver=SOLVER, gradient=gradient)
        return layer(zeros(), x, sparse) if given else layer(zeros(), x)

    expected = derivatives(lambda: output(UNROLLED), [sparse, x])
    for actual, target in zip(
        derivatives(lambda: output(EXACT), [sparse, x]), expected, strict=True
    ):
        assert actual.layout == target.layout
        torch.testing.assert_close(actual.to_dense(), target.to_dense(), rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("given", [False, True], ids=["closed over", "an argument"])
def test_compressed_leaves_have_first_derivatives(given: bool) -> None:
    """torch has no gradient of one that could be differentiated."""
    weight, x = leaves(1)
    compressed = weight.detach().to_sparse_csr().requires_grad_()

    def f(z: Tensor, v: Tensor, matrix: Tensor) -> Tensor:
        return torch.tanh(torch.sparse.mm(matrix, z.T).T + v)

    cell = f if given else lambda z, v: f(z, v, compressed)
    layer = dk.DEQ(cell, solver=SOLVER, gradient=EXACT)
    z = layer(zeros(), x, *([compressed] if given else []))
    actual = torch.autograd.grad(z.sum(), (compressed, x), retain_graph=True)
    dense = dk.DEQ(f, solver=SOLVER, gradient=EXACT)(zeros(), x, weight)
    for gradient, target in zip(actual, torch.autograd.grad(dense.sum(), (weight, x)), strict=True):
        torch.testing.assert_close(gradient.to_dense(), target, rtol=1e-8, atol=1e-10)
    (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"the layout torch\.sparse_csr"):
        slope.sum().backward()
