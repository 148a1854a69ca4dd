"""A run that cannot be is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from deq_zoo.config import TrainingConfig
from deq_zoo.machine import MachineConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number, at least 1; got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number, at least 1; got 1.5"),
        ({"batch_size": True}, "batch_size must be a whole number, at least 1; got True"),
        ({"pretraining_steps": -1}, "pretraining_steps must be a whole number, at least 0; got -1"),
        ({"pretraining_depth": 0}, "pretraining_depth must be a whole number, at least 1; got 0"),
        ({"learning_rate": 1e-7}, "learning_rate must be finite and at least 1e-06; got 1e-07"),
        ({"learning_rate": float("nan")}, "learning_rate must be .*; got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be .*; got inf"),
        ({"weight_decay": -0.1}, "weight_decay must be .* at least 0; got -0.1"),
        ({"optimizer": "lion"}, "optimizer must be one of 'adam', 'sgd'; got 'lion'"),
        ({"schedule": "poly"}, "schedule must be one of 'cosine', 'step', 'constant'; got 'poly'"),
        ({"clip_norm": 0.0}, "clip_norm must be .*or None; got 0.0"),
        ({"jacobian_frequency": 0.0}, "jacobian_frequency must be .*above 0, up to 1; got 0.0"),
        ({"step_jitter": (1, -1)}, r"step_jitter must be \(smallest, largest\); got \(1, -1\)"),
        ({"seed": -1}, "seed must be a whole number, at least 0; got -1"),
        ({"seed": 2**32}, "seed must be at most 4294967295; got 4294967296"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.9}, "momentum applies to sgd"),
        ({"nesterov": True, "optimizer": "sgd"}, "nesterov needs a momentum"),
        ({"decay_epochs": (3,)}, "decay_epochs and the schedule step go together"),
        ({"schedule": "step"}, "decay_epochs and the schedule step go together"),
        ({"pretraining_jacobian_weight": 0.1}, "but pretraining_steps is 0"),
        ({"jacobian_growth": 0.1}, "jacobian_growth_steps go together"),
        ({"step_jitter": (-2, 0)}, "step_jitter and jittered go together"),
        (
            {"step_jitter": (-2, 0), "jittered": "regularised"},
            "jittered=regularised needs a jacobian_weight",
        ),
    ],
)
def test_options_without_effect(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be cpu or cuda.*; got 'gpu'"),
        ({"device": "mps"}, "device must be cpu or cuda.*; got 'mps'"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64', 'bfloat16'"),
        ({"compile": 1}, "compile must be a bool; got 1"),
        ({"threads": 0}, "threads must be a whole number, at least 1; got 0"),
    ],
)
def test_machines_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MachineConfig(**options)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees none; use device=cpu"):
        MachineConfig(device="cuda").find_device()
