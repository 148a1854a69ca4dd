"""All estimators on one batch, on copies of the model."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.training.choices import build_model
from deq_kernels.training.compare import compare_gradients
from deq_kernels.training.config import GRADIENTS, TrainingConfig


def test_every_gradient_is_timed_on_a_copy() -> None:
    config = TrainingConfig(gradient="neumann", damping=0.9)
    model = build_model(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = (torch.rand(4, 1, 8, 8), torch.arange(4))
    random_state = torch.get_rng_state()
    timings = compare_gradients(model, config, batch, rounds=1)
    assert tuple(timing.gradient for timing in timings) == GRADIENTS
    for timing in timings:
        assert timing.forward_seconds > 0
        assert timing.backward_seconds > 0
        assert -1 <= timing.cosine <= 1 + 1e-12
    assert timings[0].cosine == pytest.approx(1.0)
    # The solution is too rough for two estimators to agree.
    assert len({round(timing.cosine, 6) for timing in timings}) == len(GRADIENTS)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
