"""The whole model: gradients under every estimator, dropout, evaluation mode, pretraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels import (
    Broyden,
    FixedPoint,
    Gradient,
    Implicit,
    JacobianFree,
    Neumann,
    Shine,
    Unrolled,
)
from deq_kernels.models import MDEQ, MDEQConfig

# Random weights, and as few steps as a test needs.
pytestmark = pytest.mark.filterwarnings("ignore::deq_kernels.UnconvergedWarning")

TINY = MDEQConfig(
    image_channels=2,
    image_size=(4, 4),
    classes=3,
    channels=(8, 8),
    head_channels=(2, 3),
    final_channels=5,
    expansion=1,
)
ESTIMATORS: dict[str, Callable[[], Gradient]] = {
    "implicit": lambda: Implicit(solver=Broyden(max_steps=20)),
    "jacobian_free": JacobianFree,
    "shine": Shine,
    "neumann": lambda: Neumann(steps=3, damping=0.5),
    "unrolled": lambda: Unrolled(steps=3, damping=0.5),
}


def _images(count: int = 6) -> Tensor:
    return torch.randn(count, 2, 4, 4)


def _record_masks(model: MDEQ) -> list[Tensor]:
    masks: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        mask = inputs[2]
        assert isinstance(mask, Tensor)
        masks.append(mask.clone())

    model.cell.blocks[0].register_forward_hook(record)
    return masks


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = MDEQ(TINY, solver=Broyden(max_steps=20), gradient=ESTIMATORS[name]())
    F.cross_entropy(model(_images()), torch.arange(6) % 3).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # A bias before a BatchNorm in training mode has no effect.
        if parameter_name not in ("head.halve.0.0.bias", "head.final.0.bias"):
            assert parameter.grad.abs().max() > 1e-9, parameter_name


def test_implicit_gradient_is_the_derivative_of_the_loss() -> None:
    solver = Broyden(max_steps=80, rtol=1e-12)
    model = MDEQ(TINY, solver=solver, gradient=Implicit(solver=solver)).double().eval()
    images, labels = _images().double(), torch.arange(6) % 3
    for fuse in model.cell.fusion:
        # A small scale beside a large shift makes the cell contract, so that it can be solved to
        # rounding.
        norm = fuse.post[2]
        torch.nn.init.constant_(norm.weight, 0.1)
        torch.nn.init.normal_(norm.bias)
    parameters = list(model.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    F.cross_entropy(model(images), labels).backward()
    solution = model.last_solution
    assert solution is not None
    assert solution.converged.all()
    expected = sum(
        float((parameter.grad * direction).sum())
        for parameter, direction in zip(parameters, directions, strict=True)
        if parameter.grad is not None
    )

    def loss_at(shift: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=shift)
            loss = F.cross_entropy(model(images), labels).item()
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=shift)
        return loss

    step = 1e-6
    difference = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert difference == pytest.approx(expected, rel=1e-4)


def test_pretraining_is_plain_backpropagation_through_the_cell() -> None:
    model = MDEQ(TINY).double().eval()
    images = _images().double()
    model(images, pretrain_steps=3).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    u = model.stem(images)
    z = tuple(u.new_zeros(len(images), *shape) for shape in TINY.state_shapes)
    for _ in range(3):
        z = model.cell(z, u)
    model.head(z).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert model.last_solution is None


@pytest.mark.parametrize("name", ["implicit", "unrolled"])
def test_dropout_masks_are_fixed_within_a_pass_and_new_in_the_next(name: str) -> None:
    model = MDEQ(
        replace(TINY, dropout=0.5), solver=Broyden(max_steps=6), gradient=ESTIMATORS[name]()
    )
    masks = _record_masks(model)
    model(_images()).sum().backward()
    first, masks[:] = masks[:], []
    assert len(first) >= 2
    assert all(torch.equal(mask, first[0]) for mask in first)
    model(_images()).sum().backward()
    assert not torch.equal(masks[0], first[0])


def test_evaluation_is_deterministic_and_samples_do_not_mix() -> None:
    solver = Broyden(max_steps=60, rtol=1e-11)
    model = MDEQ(replace(TINY, dropout=0.5), solver=solver, gradient=Shine()).double().eval()
    images = _images().double()
    with torch.no_grad():
        scores = model(images)
        assert torch.equal(model(images), scores)
        torch.testing.assert_close(model(images[2:4]), scores[2:4])


def test_evaluation_uses_its_own_solver() -> None:
    model = MDEQ(
        TINY,
        solver=Broyden(max_steps=3, rtol=0.0),
        gradient=JacobianFree(),
        eval_solver=FixedPoint(max_steps=5, rtol=0.0),
    )
    for training, steps in ((True, 3), (False, 5)):
        model.train(training)
        model(_images())
        solution = model.last_solution
        assert solution is not None
        assert solution.steps.tolist() == [steps] * 6


def test_default_solvers_are_the_published_ones() -> None:
    model = MDEQ(TINY)
    assert model.deq.solver == Broyden(max_steps=30, rtol=1e-3)
    assert model.deq.gradient == Implicit(solver=Broyden(max_steps=30, rtol=1e-3))


def test_one_branch() -> None:
    config = replace(TINY, channels=(8,), head_channels=(2,))
    model = MDEQ(config, solver=Broyden(max_steps=10), gradient=Shine())
    assert model(_images()).shape == (6, 3)


@pytest.mark.parametrize("shape", [(6, 1, 4, 4), (6, 2, 8, 8), (2, 4, 4)])
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images \[B, 2, 4, 4\], got \("):
        MDEQ(TINY)(torch.zeros(shape))


def test_pretraining_needs_a_step() -> None:
    with pytest.raises(ValueError, match="pretrain_steps must be at least 1, got 0"):
        MDEQ(TINY)(_images(), pretrain_steps=0)


def test_pretrain_steps_must_be_named() -> None:
    with pytest.raises(TypeError, match="positional arguments"):
        MDEQ(TINY)(_images(), 3)


def test_compaction_keeps_each_sample_with_its_masks() -> None:
    """Samples that need few steps leave early; the others keep their own masks and injections."""
    config = replace(TINY, dropout=0.4)
    found = []
    for compact in (False, True):
        torch.manual_seed(1)
        solver = Broyden(max_steps=16, rtol=0.3, compact=compact)
        model = MDEQ(config, solver=solver, gradient=JacobianFree()).double()
        scores = model(_images().double())
        scores.square().sum().backward()
        solution = model.last_solution
        assert solution is not None
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found.append((solution.z[0], scores.detach(), gradients, solution.evaluations))
    (whole, compacted) = found
    assert compacted[3] < whole[3], "the samples should need different numbers of steps"
    for before, now in zip(whole[:3], compacted[:3], strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-5)
