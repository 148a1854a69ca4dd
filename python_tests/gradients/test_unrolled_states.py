"""The states that Unrolled passes through, for auxiliary losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.nn import fixed_point_correction
from deq_kernels.solvers import State
from python_tests.gradients.tanh_layer import TanhCell

STOPPED = dk.FixedPoint(max_steps=4, rtol=0.0)


def plain_states(
    cell: TanhCell, z_star: Tensor, x: Tensor, steps: int, damping: float
) -> list[Tensor]:
    states = []
    h = z_star.detach()
    for _ in range(steps):
        h = (1 - damping) * h + damping * cell(h, x)
        states.append(h)
    return states


@pytest.mark.parametrize("damping", [1.0, 0.4])
@pytest.mark.parametrize("steps", [1, 4])
def test_auxiliary_losses_equal_plain_autograd(steps: int, damping: float) -> None:
    cell = TanhCell(5, 0.9)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 5, dtype=torch.float64)
    states: list[Tensor] = []
    unrolled = dk.Unrolled(steps=steps, damping=damping, on_states=states.extend)
    layer = dk.DEQ(cell, solver=STOPPED, gradient=unrolled)
    z = layer(torch.zeros(2, 5, dtype=torch.float64), x)
    expected = plain_states(cell, layer.last_solution.z, x, steps, damping)
    assert len(states) == steps
    for state, plain in zip(states, expected, strict=True):
        torch.testing.assert_close(state, plain, rtol=1e-13, atol=1e-13)
    assert torch.equal(states[-1], z)

    def loss(h: list[Tensor]) -> Tensor:
        return fixed_point_correction(lambda s, t: (s - t).square().sum(), h, target).loss

    leaves = (x, cell.weight, cell.inject)
    actual = torch.autograd.grad(loss(states), leaves)
    for grad, target_grad in zip(actual, torch.autograd.grad(loss(expected), leaves), strict=True):
        torch.testing.assert_close(grad, target_grad, rtol=1e-12, atol=1e-12)


def test_states_have_the_structure_of_the_start() -> None:
    seen: list[tuple[State, ...]] = []
    gain = torch.tensor(0.4, requires_grad=True)

    def pair(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        return gain * torch.cos(a), gain * torch.sin(b) + a.mean()

    layer = dk.DEQ(pair, solver=STOPPED, gradient=dk.Unrolled(steps=3, on_states=seen.append))
    z0 = (torch.zeros(2, 3), torch.zeros(2, 2, 4))
    a, b = layer(z0)
    (states,) = seen
    assert [[part.shape for part in state] for state in states] == 3 * [[a.shape, b.shape]]
    assert torch.equal(states[-1][0], a)
    assert torch.equal(states[-1][1], b)
    sum(part.sum() for state in states for part in state).backward()
    assert gain.grad.isfinite()


def test_they_are_handed_out_once_for_each_pass_under_autograd() -> None:
    seen: list[tuple[State, ...]] = []
    layer = dk.DEQ(
        TanhCell(5, 0.5), solver=STOPPED, gradient=dk.Unrolled(steps=2, on_states=seen.append)
    )
    z0, x = torch.zeros(2, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        layer(z0, x)
    assert not seen
    layer(z0, x)
    layer.eval()(z0, x)
    assert [len(states) for states in seen] == [2, 2]
