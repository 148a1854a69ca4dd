"""Projection onto the ∞-norm ball, and bounds on the spectral radius of magnitudes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from deq_kernels.cells import Adjacency
from deq_kernels.nn import perron_frobenius_bound, perron_radius, project_infinity_norm
from python_tests.cells.solves import solve_graph

DOUBLE = torch.float64


def by_bisection(row: Tensor, bound: float) -> Tensor:
    """The projection of a row outside of the ball, from the θ at which its norm is the bound."""
    low, high = 0.0, float(row.abs().max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float((row.abs() - middle).clamp(min=0.0).sum()) > bound:
            low = middle
        else:
            high = middle
    return row.sign() * (row.abs() - high).clamp(min=0.0)


def directed_path(nodes: int) -> Adjacency:
    ahead = torch.arange(nodes)
    return Adjacency.from_coo(torch.stack([ahead[:-1], ahead[1:]]), nodes=nodes)


def path(nodes: int) -> Adjacency:
    ahead = torch.arange(nodes)
    one_way = torch.stack([ahead[:-1], ahead[1:]])
    return Adjacency.from_coo(torch.cat([one_way, one_way.flip(0)], 1), nodes=nodes, symmetric=True)


def cycle(nodes: int) -> Adjacency:
    ahead = torch.arange(nodes)
    return Adjacency.from_coo(torch.stack([ahead, (ahead + 1) % nodes]), nodes=nodes)


def true_radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix.double().abs()).abs().max())


@pytest.mark.parametrize("bound", [0.3, 1.0, 5.0])
def test_projection_is_that_found_by_bisection(bound: float) -> None:
    weight = torch.randn(6, 9, dtype=DOUBLE)
    weight[1] *= 1e-3
    weight[2] *= 1e6
    weight[3] = 2.0  # all entries alike
    weight[4, :8] = 0.0
    projected = project_infinity_norm(weight, bound)
    for row, found in zip(weight, projected, strict=True):
        if row.abs().sum() <= bound:
            assert torch.equal(found, row)
        else:
            torch.testing.assert_close(found, by_bisection(row, bound), rtol=1e-12, atol=1e-9)
            assert abs(float(found.abs().sum()) - bound) < 1e-9


def test_nothing_in_the_ball_is_nearer() -> None:
    """⟨w − w', v − w'⟩ ≤ 0 for all v in the ball, of which the corners are enough."""
    weight, bound = torch.randn(20, 5, dtype=DOUBLE), 0.7
    projected = project_infinity_norm(weight, bound)
    corners = bound * torch.cat([torch.eye(5, dtype=DOUBLE), -torch.eye(5, dtype=DOUBLE)])
    difference = weight - projected
    products = difference @ corners.T - (difference * projected).sum(1, keepdim=True)
    assert products.max() <= 1e-12
    assert difference.abs().sum() > 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_projection_is_rounded_once(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 100).to(dtype)
    expected = project_infinity_norm(weight.double(), 0.9).to(dtype)
    assert torch.equal(project_infinity_norm(weight, 0.9), expected)
    assert torch.equal(project_infinity_norm(weight, 1e6), weight)


def test_projection_onto_a_point_and_of_nothing() -> None:
    assert torch.equal(project_infinity_norm(torch.randn(3, 4), 0.0), torch.zeros(3, 4))
    assert project_infinity_norm(torch.zeros(3, 0), 1.0).shape == (3, 0)
    assert project_infinity_norm(torch.zeros(0, 3), 1.0).shape == (0, 3)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    weight = torch.randn(2, 4)
    weight[0, 1] = torch.nan
    projected = project_infinity_norm(weight, 0.5)
    assert projected[0].isnan().any()
    assert torch.equal(projected[1:], project_infinity_norm(weight[1:], 0.5))


def test_projection_is_differentiable() -> None:
    weight = torch.randn(4, 6, dtype=DOUBLE)
    weight[0] *= 0.01
    assert gradcheck(lambda w: project_infinity_norm(w, 0.8), weight.requires_grad_())


def test_projection_refuses_what_it_cannot_do() -> None:
    for bound in (-1.0, math.nan, math.inf, "1", True):
        with pytest.raises(ValueError, match="bound must be"):
            project_infinity_norm(torch.ones(2, 2), bound)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight must be \[rows, columns\]; got \[2\]"):
        project_infinity_norm(torch.ones(2), 1.0)
    with pytest.raises(TypeError, match=r"floating-point numbers; got torch.int64"):
        project_infinity_norm(torch.ones(2, 2, dtype=torch.int64), 1.0)
    with pytest.raises(TypeError, match="weight must be a dense tensor; got list"):
        project_infinity_norm([[1.0]], 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("rtol", [1e-3, 1e-9])
def test_the_radius_of_magnitudes(rtol: float) -> None:
    for matrix in (
        torch.randn(30, 30),
        torch.rand(1, 1, dtype=DOUBLE),
        torch.tensor([[0.0, 4.0], [-1.0, 0.0]]),  # periodic
        torch.diag(torch.tensor([1.0, 3.0, 2.0])),  # in parts
        torch.block_diag(torch.ones(3, 3), torch.zeros(2, 2), torch.ones(2, 2)),
    ):
        found, true = perron_radius(matrix, rtol=rtol), true_radius(matrix)
        assert found.converged.all()
        assert float(found.lower) <= true * (1 + 1e-12)
        assert float(found.upper) >= true * (1 - 1e-12)
        assert float(found.upper - found.lower) <= rtol * float(found.upper)


def test_bounds_hold_after_any_number_of_steps() -> None:
    matrix = torch.randn(12, 12, dtype=DOUBLE) * (torch.rand(12, 12) < 0.3)
    true, widths = true_radius(matrix), []
    for max_steps in (1, 2, 3, 8, 9, 30):
        found = perron_radius(matrix, max_steps=max_steps, rtol=0.0)
        assert found.steps <= max_steps
        assert float(found.lower) <= true * (1 + 1e-12)
        assert true * (1 - 1e-12) <= float(found.upper)
        widths.append(float(found.upper - found.lower))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.2 * widths[0]


def test_every_graph_has_a_radius_of_its_own() -> None:
    nothing = Adjacency.from_coo(torch.zeros(2, 0, dtype=torch.int64), nodes=0)
    isolated = Adjacency.from_coo(torch.zeros(2, 0, dtype=torch.int64), nodes=1)
    parts = [directed_path(10), cycle(7), nothing, path(8), isolated]
    found = perron_radius(Adjacency.from_graphs(parts))
    expected = torch.tensor([0.0, 1.0, 0.0, 2 * math.cos(math.pi / 9), 0.0], dtype=DOUBLE)
    assert found.converged.all()
    torch.testing.assert_close(found.upper, expected, rtol=2e-6, atol=0.0)
    torch.testing.assert_close(found.lower, expected, rtol=2e-6, atol=0.0)


def test_parts_that_feed_each_other_leave_an_upper_bound() -> None:
    found = perron_radius(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), max_steps=200)
    assert not found.converged.any()
    assert 1.0 < float(found.upper) < 1.02


def test_dead_parts_do_not_underflow() -> None:
    """An isolated node loses its share in every step."""
    matrix = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    found = perron_radius(matrix, max_steps=5000)
    assert 1.0 <= float(found.upper) < 1.001
    assert float(found.lower) <= 1.0


def test_radius_is_that_of_magnitudes_for_adjacencies_too() -> None:
    dense = torch.randn(9, 9, dtype=DOUBLE)
    index = dense.nonzero().T
    adjacency = Adjacency.from_coo(index, dense[index[0], index[1]].requires_grad_(), nodes=9)
    found = perron_radius(adjacency, rtol=1e-10)
    assert not found.upper.requires_grad
    assert abs(float(found.upper) - true_radius(dense)) < 1e-8


def test_the_bound_is_the_product_of_both() -> None:
    weight = torch.randn(5, 5, dtype=DOUBLE)
    batch = Adjacency.from_graphs([cycle(3), path(4), directed_path(3)])
    bound = perron_frobenius_bound(weight, batch)
    alone = perron_frobenius_bound(weight)
    expected = true_radius(weight) * torch.tensor([1.0, 2 * math.cos(math.pi / 5), 0.0])
    torch.testing.assert_close(bound, expected.double(), rtol=1e-5, atol=0.0)
    assert alone.shape == (1,)
    assert true_radius(weight) <= float(alone) * (1 + 1e-12)


def test_a_projected_weight_is_well_posed_and_its_cell_has_a_solution() -> None:
    adjacency = path(12).to(dtype=DOUBLE)
    radius = float(perron_radius(adjacency).upper)
    weight = torch.randn(4, 4, dtype=DOUBLE)
    assert float(perron_frobenius_bound(weight, adjacency)) > 1.0
    weight = project_infinity_norm(weight, 0.9 / radius)
    assert float(perron_frobenius_bound(weight, adjacency)) <= 0.9 * (1 + 1e-5)
    seen = []
    b = torch.randn(12, 4, dtype=DOUBLE)
    solve_graph(b, weight, adjacency, activation="relu", rtol=1e-10, on_solve=seen.append)
    assert seen[0].converged.all()


def test_radius_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"square, \[n, n\]; got \[2, 3\]"):
        perron_radius(torch.ones(2, 3))
    with pytest.raises(ValueError, match="must be finite"):
        perron_radius(torch.tensor([[math.inf]]))
    with pytest.raises(TypeError, match="matrix must be a dense tensor; got list"):
        perron_radius([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="adjacency must be None or an Adjacency; got Tensor"):
        perron_frobenius_bound(torch.ones(2, 2), torch.ones(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_steps must be"):
        perron_radius(torch.ones(2, 2), max_steps=0)
    for rtol in (-1.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="rtol must be"):
            perron_radius(torch.ones(2, 2), rtol=rtol)
    assert perron_radius(torch.zeros(0, 0)).upper.tolist() == [0.0]
