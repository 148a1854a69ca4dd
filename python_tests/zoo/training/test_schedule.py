"""Schedules: their ends, their middle, warm-up, and their errors."""

from __future__ import annotations

import pytest

from deq_zoo.config import TrainingConfig
from deq_zoo.schedule import cosine_learning_rate, learning_rate


def test_ends_and_middle() -> None:
    rates = [cosine_learning_rate(step, total_steps=1000, initial=1e-3) for step in range(1000)]
    assert rates[0] == 1e-3
    assert rates[500] == pytest.approx((1e-3 + 1e-6) / 2)
    assert 1e-6 < rates[-1] < 1.01e-6
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside(step: int) -> None:
    with pytest.raises(ValueError, match=r"step must lie in \[0, total_steps = 10\)"):
        cosine_learning_rate(step, total_steps=10, initial=1e-3)


def test_initial_below_the_end() -> None:
    with pytest.raises(ValueError, match="ends at 1e-06, got initial = 1e-07"):
        cosine_learning_rate(0, total_steps=10, initial=1e-7)


def _rates(config: TrainingConfig, steps: int) -> list[float]:
    return [
        learning_rate(config, step, total_steps=steps, steps_per_epoch=5) for step in range(steps)
    ]


def test_warm_up() -> None:
    rates = _rates(TrainingConfig(learning_rate=0.1, warmup_steps=4), 24)
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[4:] == [cosine_learning_rate(i, total_steps=20, initial=0.1) for i in range(20)]
    # A warm-up that is longer than the run still has a last step.
    assert _rates(TrainingConfig(learning_rate=0.1, warmup_steps=9), 3)[-1] == 0.1


def test_steps_down() -> None:
    config = TrainingConfig(
        learning_rate=0.8, schedule="step", decay_epochs=(2, 3), decay_factor=0.5
    )
    assert _rates(config, 20) == [0.8] * 10 + [0.4] * 5 + [0.2] * 5
    constant = TrainingConfig(learning_rate=0.8, schedule="constant")
    assert _rates(constant, 20) == [0.8] * 20
