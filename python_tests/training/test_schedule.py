"""The cosine: its ends, its middle, and its errors."""

from __future__ import annotations

import pytest

from deq_kernels.training.schedule import cosine_learning_rate


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
