"""What every provider gets: a model that has begun to learn, and batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from deq_kernels import DEQ
from deq_zoo.choices import build_optimizer
from deq_zoo.presets import RunConfig
from deq_zoo.registry import find_task, run_config
from deq_zoo.task import Task

from .cases import FIXED, StepCase

UNROLLED_STEPS = 60
EQUILIBRIUM_STEPS = 20
"""Enough for solves that converge; those of a new model do not."""
BATCHES = 4


@dataclass(frozen=True)
class StepProblem:
    """One case, ready to be bound.

    Attributes:
        task: with the trained model, the case's gradient and stopping rule, in training mode.
        config: what the task was built for.
        settings: what the config changes of the preset.
        batches: taken in turn.
    """

    task: Task
    config: RunConfig
    settings: Mapping[str, object]
    batches: tuple[Any, ...]

    def copy(self, changes: Mapping[str, object] | None = None) -> Task:
        """The task with a model of its own and some further settings."""
        task, _ = _build(self.config.task, self.config.preset, {**self.settings, **(changes or {})})
        task.model.load_state_dict(self.task.model.state_dict())
        return task


def make_problem(case: StepCase, *, dtype: str, device: str) -> StepProblem:
    """Train the model of a case a little, and give it the case's solver and gradient.

    Raises:
        ImportError: a package that the data needs is not installed.
        ValueError: the preset is unknown or its data is not bundled, or the gradient does not go
            with its solver.
    """
    settings: dict[str, object] = {"machine.dtype": dtype, "machine.device": device}
    settings |= case.settings
    begun, begun_config = _build(case.model, case.preset, settings)
    batches = _forever(begun)
    _train(begun, begun_config, batches)
    settings["equilibrium.gradient"] = case.gradient
    if case.stop == FIXED:
        settings |= {"equilibrium.rtol": "0", "equilibrium.atol": "0"}
    task, config = _build(case.model, case.preset, settings)
    task.model.load_state_dict(begun.model.state_dict())
    return StepProblem(task, config, settings, tuple(islice(batches, BATCHES)))


def _build(model: str, preset: str, settings: Mapping[str, object]) -> tuple[Task, RunConfig]:
    config = run_config(model, preset=preset, settings=settings)
    torch.manual_seed(0)
    task = find_task(model).build(config)
    task.model.train()
    for module in task.model.modules():
        if isinstance(module, DEQ):
            module.on_solve = "ignore"  # the report says how many steps were taken
    return task, config


def _forever(task: Task) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from task.batches(generator)


def _train(task: Task, config: RunConfig, batches: Iterator[Any]) -> None:
    training = config.training
    optimizer = build_optimizer(training, task.model.parameters())
    unrolled = min(training.pretraining_steps, UNROLLED_STEPS)
    for step in range(unrolled + EQUILIBRIUM_STEPS):
        optimizer.zero_grad()
        depth = training.pretraining_depth if step < unrolled else None
        task.run(next(batches), depth=depth).loss.backward()
        optimizer.step()
        with torch.no_grad():
            task.after_step()
    optimizer.zero_grad()
