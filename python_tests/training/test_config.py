"""A run that cannot be is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from deq_kernels.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0, "pretrain_epochs": 0}, "total_epochs must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"learning_rate": 1e-7}, "learning_rate must be at least 1e-06, got 1e-07"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 1e-06, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0.0, got -0.1"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)
