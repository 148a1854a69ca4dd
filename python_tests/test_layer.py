"""The layer: composition of a cell, a solver and a gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk


def cell(z: Tensor, x: Tensor) -> Tensor:
    return 0.5 * torch.cos(z) + x


def test_composition_and_the_last_solution() -> None:
    layer = dk.DEQ(cell, solver=dk.Broyden(max_steps=20, rtol=1e-6), gradient=dk.Shine())
    assert layer.last_solution is None
    x = torch.randn(3, 5)
    z = layer(torch.zeros(3, 5), x)
    torch.testing.assert_close(z, cell(z, x), rtol=1e-5, atol=1e-5)
    assert layer.last_solution.converged.all()
    assert layer.last_solution.inverse_jacobian is None
    assert "Shine" in repr(layer)


def test_arguments_reach_the_cell() -> None:
    def scaled(z: Tensor, x: Tensor, *, scale: float) -> Tensor:
        return scale * z + x

    layer = dk.DEQ(scaled, solver=dk.FixedPoint(max_steps=100, rtol=1e-6))
    z = layer(torch.zeros(2, 3), torch.ones(2, 3), scale=0.5)
    torch.testing.assert_close(z, torch.full((2, 3), 2.0), rtol=1e-4, atol=1e-4)


def test_tuple_states_carry_gradients() -> None:
    gain = torch.tensor(0.3, requires_grad=True)

    def pair(state: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = state
        return gain * torch.sin(b).sum(1, keepdim=True) + x, 0.3 * torch.cos(a).expand(-1, 4)

    layer = dk.DEQ(pair, solver=dk.Broyden(max_steps=40, rtol=1e-6))
    z0 = (torch.zeros(2, 1), torch.zeros(2, 4))
    a, b = layer(z0, torch.ones(2, 1))
    (a.sum() + b.sum()).backward()
    step = 1e-3
    sums = []
    for value in (0.3 - step, 0.3 + step):
        with torch.no_grad():
            gain.fill_(value)
            sums.append(sum(piece.sum() for piece in layer(z0, torch.ones(2, 1))))
    torch.testing.assert_close(gain.grad, (sums[1] - sums[0]) / (2 * step), rtol=2e-2, atol=1e-3)


def test_warm_start_continues_from_the_last_solution() -> None:
    layer = dk.DEQ(cell, solver=dk.FixedPoint(max_steps=60, rtol=1e-6), warm_start=True)
    z0, x = torch.zeros(3, 5), torch.randn(3, 5)
    layer(z0, x)
    cold = layer.last_solution.steps.clone()
    layer(z0, x)
    assert (layer.last_solution.steps == 1).all()
    layer(z0[:2], x[:2])  # another batch size starts from z0 again
    assert torch.equal(layer.last_solution.steps, cold[:2])


def test_warm_start_leaves_diverged_samples_to_z0() -> None:
    layer = dk.DEQ(
        lambda z, x: z * x + 1.0,
        solver=dk.FixedPoint(max_steps=60, rtol=1e-6, divergence_factor=10.0),
        warm_start=True,
        on_solve="ignore",
    )
    x = torch.tensor([[0.5], [3.0]])
    layer(torch.zeros(2, 1), x)
    assert layer.last_solution.status.tolist() == [dk.Status.CONVERGED, dk.Status.DIVERGED]
    layer(torch.full((2, 1), -0.5), torch.full((2, 1), 0.5))
    solution = layer.last_solution
    assert solution.steps[0] == 1
    assert solution.trace[1, 0] == pytest.approx(1.25)  # |0.5 · (−0.5) + 1 − (−0.5)|


def test_evaluation_mode_uses_its_own_solver() -> None:
    layer = dk.DEQ(
        cell,
        solver=dk.FixedPoint(max_steps=3, rtol=0.0),
        eval_solver=dk.FixedPoint(max_steps=7, rtol=0.0),
    )
    x = torch.randn(1, 5)
    layer(torch.zeros(1, 5), x)
    assert layer.last_solution.steps == 3
    layer.eval()(torch.zeros(1, 5), x)
    assert layer.last_solution.steps == 7


def test_shine_needs_a_solver_that_builds_an_inverse() -> None:
    with pytest.raises(ValueError, match=r"Shine needs .* got solver=FixedPoint"):
        dk.DEQ(cell, solver=dk.FixedPoint(), gradient=dk.Shine())
    with pytest.raises(ValueError, match="got eval_solver=FixedPoint"):
        dk.DEQ(cell, eval_solver=dk.FixedPoint(), gradient=dk.Shine())


@pytest.mark.parametrize("grad", [True, False])
def test_the_output_may_be_changed_in_place(grad: bool) -> None:
    """Neither autograd nor the kept solution minds."""
    scale = torch.tensor(0.5, requires_grad=True)
    layer = dk.DEQ(lambda z: scale * torch.cos(z), gradient=dk.JacobianFree())
    with torch.set_grad_enabled(grad):
        z = layer(torch.zeros(2, 3))
        kept = layer.last_solution.z.clone()
        z.add_(1.0)
    assert torch.equal(layer.last_solution.z, kept)
    if grad:
        z.sum().backward()
        torch.testing.assert_close(scale.grad, torch.cos(kept).sum())


def test_no_gradient_is_attached_where_none_is_wanted() -> None:
    layer = dk.DEQ(cell, solver=dk.Broyden(max_steps=20))
    weight = torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        assert not layer(torch.zeros(2, 3), weight).requires_grad
    assert layer(torch.zeros(2, 3), weight).requires_grad
    shine = dk.DEQ(cell, gradient=dk.Shine())
    assert not shine(torch.zeros(2, 3), weight.detach()).requires_grad


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("dim", [0, 1, 5])
@pytest.mark.parametrize(
    "gradient",
    [dk.Implicit(), dk.JacobianFree(), dk.Shine(), dk.Neumann(), dk.Adaptive(), dk.Unrolled()],
    ids=lambda g: type(g).__name__,
)
def test_batches_of_one_or_none_and_states_without_elements(
    gradient: dk.Gradient, batch: int, dim: int
) -> None:
    layer = dk.DEQ(cell, solver=dk.Broyden(max_steps=40, rtol=1e-6), gradient=gradient)
    x = torch.randn(batch, dim, requires_grad=True)
    for z0 in (torch.zeros(batch, dim), torch.zeros(batch, dim, 1)):
        z = layer(z0, x.view(z0.shape))
        assert z.shape == z0.shape
        z.sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.isfinite().all()


def test_hooks_on_the_layer_run_once_for_each_call() -> None:
    layer = dk.DEQ(cell, solver=dk.Broyden(max_steps=40, rtol=1e-6))
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    x = torch.randn(2, 3, requires_grad=True)
    layer(torch.zeros(2, 3), x).sum().backward()
    assert seen == ["before", "after", "backward"]


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "pickle"],
)
def test_copies_of_a_layer_are_layers_of_their_own(again: Callable[[dk.DEQ], dk.DEQ]) -> None:
    layer = dk.DEQ(nn.Linear(3, 3), solver=dk.Broyden(max_steps=40, rtol=1e-6), warm_start=True)
    with torch.no_grad():
        layer.cell.weight.mul_(0.3)
    z = layer(torch.zeros(2, 3))
    other = again(layer)
    assert (other.last_solution.steps == layer.last_solution.steps).all()
    other(torch.zeros(2, 3)).sum().backward()
    assert (other.last_solution.steps == 1).all()  # the last solution came along
    torch.testing.assert_close(other(torch.zeros(2, 3)), z, rtol=1e-5, atol=1e-5)
    assert layer.cell.weight.grad is None
    assert other.cell.weight.grad is not None
