"""Small runs for tests: an MDEQ on a few random images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deq_zoo.data import Split, Splits
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, Processes
from deq_zoo.registry import run_config
from deq_zoo.tasks.images import Images
from deq_zoo.tasks.mdeq import MDEQTask, build_model

SETTINGS: dict[str, Any] = {
    "equilibrium.forward_steps": 4,
    "training.epochs": 4,
    "training.pretraining_steps": 3,
    "training.pretraining_depth": 2,
    "training.batch_size": 8,
    "training.seed": 3,
}
EQUILIBRIUM_ONLY: dict[str, Any] = {"training.pretraining_steps": 0, "training.epochs": 1}


def small_config(**changes: Any) -> RunConfig:
    """MDEQ on 20 images; settings are given with __ for the dot."""
    named = {name.replace("__", ".", 1): value for name, value in changes.items()}
    return run_config("mdeq", preset="digits", settings={**SETTINGS, **named})


def with_changes(changes: dict[str, Any], **more: Any) -> RunConfig:
    """The same, with settings by their dotted names first."""
    named = {name.replace(".", "__", 1): value for name, value in changes.items()}
    return small_config(**{**named, **more})


def images() -> Splits:
    """20 training, 8 validation and 8 test images of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(36, 1, 8, 8, generator=generator)
    train, validation, test = (
        Split(images[part], torch.arange(36)[part] % 10)
        for part in (slice(20), slice(20, 28), slice(28, 36))
    )
    return Splits(train=train, validation=validation, test=test)


def builder(
    data: Splits | None = None, processes: Processes = ALONE
) -> Callable[[RunConfig], MDEQTask]:
    """What makes the task of a config on these images."""
    given = images() if data is None else data
    return lambda config: MDEQTask(
        build_model(config),
        Images(splits=given, training=config.training, processes=processes),
        config,
    )
