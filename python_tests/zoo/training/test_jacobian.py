"""Jacobian regularisation: the right penalty, as often and as strong as the recipe says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from deq_kernels.nn import jacobian_penalty
from deq_zoo.config import TrainingConfig
from deq_zoo.jacobian import JacobianRegularisation
from deq_zoo.loop import Trainer
from python_tests.zoo.training.runs import builder, small_config


class Affine(nn.Module):
    """f(z, x) = W z + x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * z @ self.weight.T + x


def _layer() -> dk.DEQ:
    return dk.DEQ(Affine(), solver=dk.FixedPoint(max_steps=20))


def _config(**options: Any) -> TrainingConfig:
    return TrainingConfig(**{"jacobian_weight": 0.5, "jacobian_probes": 3, **options})


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("solved", [True, False])
def test_the_penalty_is_that_of_the_last_call(solved: bool) -> None:
    layer, config = _layer(), _config(pretraining_jacobian_weight=0.5, pretraining_steps=1)
    x = torch.randn(5, 2, dtype=torch.float64)
    z = torch.zeros_like(x)
    with JacobianRegularisation(layer, config).one_step(0, 0, _generator()) as penalty:
        if solved:
            layer(z, x, scale=0.5)
        else:
            for _ in range(3):
                z = layer.cell(z, x, scale=0.5)
        assert layer.last_solution is not None or not solved
        torch.manual_seed(3)
        value = penalty.value(layer.last_solution.z if solved else None)  # type: ignore[union-attr]
    assert value is not None
    torch.manual_seed(3)
    expected = jacobian_penalty(
        lambda z: layer.cell(z, x, scale=0.5), torch.zeros_like(x), probes=3
    )
    torch.testing.assert_close(value, expected, rtol=0.0, atol=0.0)
    (gradient,) = torch.autograd.grad(value, layer.cell.parameters())
    assert gradient.abs().min() > 0
    assert not layer._forward_hooks
    assert not layer.cell._forward_hooks


def test_frequency() -> None:
    regularisation = JacobianRegularisation(_layer(), _config(jacobian_frequency=0.3))
    generator, due = _generator(), 0
    for step in range(400):
        with regularisation.one_step(step, 0, generator) as penalty:
            due += penalty.weight > 0
    assert 90 <= due <= 150


def test_weights() -> None:
    config = _config(
        pretraining_steps=10,
        pretraining_jacobian_weight=0.03,
        jacobian_growth=0.1,
        jacobian_growth_steps=20,
        jacobian_epochs=4,
    )
    regularisation = JacobianRegularisation(_layer(), config)
    weights = []
    for step, epoch in ((0, 0), (9, 0), (10, 0), (20, 3), (45, 3), (46, 4)):
        with regularisation.one_step(step, epoch, _generator()) as penalty:
            weights.append(penalty.weight)
    assert weights == pytest.approx([0.03, 0.03, 0.5, 0.6, 0.7, 0.0])


@pytest.mark.parametrize(("jittered", "changed"), [("always", 64), ("regularised", 26)])
def test_jitter(jittered: str, changed: int) -> None:
    layer = _layer()
    config = _config(jacobian_frequency=0.5, step_jitter=(-2, 1), jittered=jittered)
    regularisation, generator = JacobianRegularisation(layer, config), _generator()
    seen, solver = [], layer.solver
    for step in range(80):
        with regularisation.one_step(step, 0, generator) as penalty:
            seen.append((layer.solver.max_steps, penalty.weight > 0))
    assert layer.solver is solver
    assert {steps for steps, _ in seen} == {18, 19, 20, 21}
    count = sum(steps != 20 for steps, _ in seen)
    assert abs(count - changed) <= 12
    if jittered == "regularised":
        assert all(due for steps, due in seen if steps != 20)


def test_a_model_without_a_layer() -> None:
    with pytest.raises(ValueError, match="need a model with a DEQ layer"):
        JacobianRegularisation(None, _config())
    plain = JacobianRegularisation(None, TrainingConfig())
    with plain.one_step(0, 0, _generator()) as penalty:
        assert penalty.value(None) is None


def test_a_regularised_run_shortens_its_solves() -> None:
    steps = []
    for weight in (0.0, 20.0):
        config = small_config(
            training__jacobian_weight=weight,
            training__pretraining_steps=0,
            training__epochs=4,
            equilibrium__forward_steps=30,
        )
        torch.manual_seed(0)
        trainer = Trainer(builder()(config), config)
        for _ in range(4):
            metrics = trainer.run_epoch()
        assert (metrics.train.jacobian_penalty is None) == (weight == 0.0)
        steps.append(metrics.train.solver_steps)
    assert steps[1] < 0.7 * steps[0]
