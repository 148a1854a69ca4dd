"""What every provider gets: a model that has begun to learn, and batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from deq_kernels.layer import DEQ
from deq_kernels.training.choices import build_gradient, build_optimizer, build_solver
from deq_kernels.training.presets import RunConfig
from deq_kernels.training.registry import find_task, run_config
from deq_kernels.training.task import Task

from .cases import FIXED, StepCase

UNROLLED_STEPS = 60
EQUILIBRIUM_STEPS = 20
"""Enough for solves that converge; those of a new model do not."""
BATCHES = 4


@dataclass(frozen=True)
class StepProblem:
    """One case, ready to be bound.

    Attributes:
        task: with the trained model, in training mode.
        config: with the case's gradient and stopping rule.
        batches: taken in turn.
    """

    task: Task
    config: RunConfig
    batches: tuple[Any, ...]

    def copy(self, *, warm_start: bool = False) -> Task:
        """The task with a model of its own."""
        task = copy.copy(self.task)
        task.model = copy.deepcopy(self.task.model)
        layer = layer_of(task)
        layer.warm_start, layer.last_solution = warm_start, None
        return task


def make_problem(case: StepCase, *, dtype: str, device: str) -> StepProblem:
    """Train the model of a case a little, and give it the case's solver and gradient.

    Raises:
        ImportError: a package that the data needs is not installed.
        ValueError: the preset is unknown or its data is not bundled, the gradient does not go with
            its solver, or the model has no DEQ layer.
    """
    settings = {"machine.dtype": dtype, "machine.device": device}
    begun = run_config(case.model, preset=case.preset, settings=settings)
    torch.manual_seed(0)
    task = find_task(case.model).build(begun)
    layer = layer_of(task)
    batches = _forever(task)
    _train(task, begun, batches)
    settings["equilibrium.gradient"] = case.gradient
    if case.stop == FIXED:
        settings |= {"equilibrium.rtol": "0", "equilibrium.atol": "0"}
    config = run_config(case.model, preset=case.preset, settings=settings)
    layer.solver = layer.eval_solver = build_solver(config.equilibrium)
    layer.gradient = build_gradient(config.equilibrium)
    return StepProblem(task, config, tuple(islice(batches, BATCHES)))


def layer_of(task: Task) -> DEQ:
    """The DEQ layer of a task's model.

    Raises:
        ValueError: it has none.
    """
    if task.layer is None:
        raise ValueError(
            "training steps are compared on models with a DEQ layer; this one has none"
        )
    return task.layer


def _forever(task: Task) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from task.batches(generator)


def _train(task: Task, config: RunConfig, batches: Iterator[Any]) -> None:
    training = config.training
    optimizer = build_optimizer(training, task.model.parameters())
    task.model.train()
    unrolled = min(training.pretraining_steps, UNROLLED_STEPS)
    for step in range(unrolled + EQUILIBRIUM_STEPS):
        optimizer.zero_grad()
        depth = training.pretraining_depth if step < unrolled else None
        task.run(next(batches), depth=depth).loss.backward()
        optimizer.step()
        with torch.no_grad():
            task.after_step()
    optimizer.zero_grad()
