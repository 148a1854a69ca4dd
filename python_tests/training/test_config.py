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
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0.0, got -0.1"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number, got inf"),
        ({"rtol": 0.0}, "rtol must be above 0, got 0.0"),
        ({"rtol": float("nan")}, "rtol must be a finite number, got nan"),
        ({"damping": -0.5}, "damping must be above 0, got -0.5"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"epochs": None}, "epochs must be a whole number, got None"),
        ({"rtol": None}, "rtol must be a finite number, got None"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"pretrain_steps": 0}, "pretrain_steps must be at least 1, got 0"),
        ({"solver_steps": 0}, "solver_steps must be at least 1, got 0"),
        ({"gradient_steps": 0}, "gradient_steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**32}, "seed must be at most 4294967295, got 4294967296"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrain_epochs": 0, "pretrain_steps": 3}, "pretrain_steps applies to pretraining"),
        ({"epochs": 0, "solver_steps": 3}, "solver_steps applies to equilibrium training"),
        ({"epochs": 0, "gradient_steps": 3}, "gradient_steps applies to equilibrium training"),
        ({"epochs": 0, "damping": 0.3}, "damping applies to equilibrium training"),
    ],
)
def test_options_without_effect(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert TrainingConfig(seed=2**32 - 1).seed == 2**32 - 1
    assert TrainingConfig(epochs=0, pretrain_steps=1).total_epochs == 3
    assert TrainingConfig(pretrain_epochs=0, solver_steps=1).total_epochs == 12
