"""All estimators on one batch, on copies of the model."""

from __future__ import annotations

from itertools import accumulate, chain
from types import SimpleNamespace

import pytest
import torch

from deq_zoo.compare import compare_gradients
from deq_zoo.equilibrium import GRADIENTS
from python_tests.zoo.training.runs import builder, small_config


def test_every_gradient_is_timed_on_a_copy() -> None:
    config = small_config(
        equilibrium__gradient="neumann", equilibrium__damping=0.9, equilibrium__forward_steps=30
    )
    task = builder()(config)
    model = task.model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = (torch.rand(4, 1, 8, 8), torch.arange(4))
    random_state = torch.get_rng_state()
    timings = compare_gradients(task, config, batch, rounds=1)
    assert tuple(timing.gradient for timing in timings) == GRADIENTS
    for timing in timings:
        assert -1 <= timing.cosine <= 1 + 1e-12
    assert timings[0].cosine == pytest.approx(1.0)
    # The solution is too rough for two estimators to agree, but for those that solve exactly.
    assert len({round(timing.cosine, 6) for timing in timings}) == len(GRADIENTS)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_medians_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = ((1000, 2000), (1, 30), (5, 10), (2, 20))  # forward and backward; the warm-up first
    # The clock is read three times per pass, and the estimators take turns; the time from one pass
    # to the next, and 100 for each place in the turn, must not be mixed up.
    intervals = chain.from_iterable(
        (7, forward + 100 * place, backward)
        for forward, backward in rounds
        for place in range(len(GRADIENTS))
    )
    clock = accumulate(intervals)
    fake = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("deq_zoo.compare.time", fake)
    config = small_config(equilibrium__forward_steps=2)
    batch = (torch.rand(2, 1, 8, 8), torch.arange(2))
    timings = compare_gradients(builder()(config), config, batch, rounds=3)
    assert [timing.forward_seconds for timing in timings] == [
        2.0 + 100 * place for place in range(len(GRADIENTS))
    ]
    assert [timing.backward_seconds for timing in timings] == [20.0] * len(GRADIENTS)
    assert next(clock, None) is None
