"""Forward and backward time of one batch under each gradient estimator."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_zoo.choices import build_gradient
from deq_zoo.equilibrium import GRADIENTS
from deq_zoo.presets import RunConfig
from deq_zoo.task import Task
from deq_zoo.threads import use_threads

ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class GradientTiming:
    """One batch under one estimator.

    Attributes:
        gradient: its name.
        forward_seconds, backward_seconds: medians over the rounds.
        cosine: between its gradient over all parameters and the implicit one.
    """

    gradient: str
    forward_seconds: float
    backward_seconds: float
    cosine: float


def compare_gradients(
    task: Task, config: RunConfig, batch: Any, *, rounds: int = ROUNDS
) -> list[GradientTiming]:
    """Time every estimator on one batch, with the same weights and the same dropout masks.

    The estimators take turns, so that a slow phase of the machine hits all of them; a first,
    untimed round warms up.

    Args:
        task: with a trained model, which is copied.
        config: that the model was trained with; its solver and threads are used for all.
        batch: as the task's `run` takes it.
        rounds: timed passes per estimator.

    Raises:
        ValueError: the model has no DEQ layer, or the config's solver leaves no inverse Jacobian,
            which some of them need.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in GRADIENTS}
    with torch.random.fork_rng(devices=[]), use_threads(config.machine.threads):
        tasks = {name: _copy(task, config, gradient=name) for name in GRADIENTS}
        for _ in range(rounds + 1):
            for name, copied in tasks.items():
                torch.manual_seed(config.training.seed)
                times[name].append(_time_batch(copied, batch))
    gradients = {name: _flat_gradient(copied) for name, copied in tasks.items()}
    return [
        GradientTiming(
            gradient=name,
            forward_seconds=_median([forward for forward, _ in times[name]]),
            backward_seconds=_median([backward for _, backward in times[name]]),
            cosine=float(F.cosine_similarity(gradients[name], gradients["implicit"], dim=0)),
        )
        for name in GRADIENTS
    ]


def _copy(task: Task, config: RunConfig, *, gradient: str) -> Task:
    copied = copy.copy(task)
    copied.model = copy.deepcopy(task.model).train()
    layer = copied.layer
    if layer is None:
        raise ValueError("gradients are compared on a model with a DEQ layer; this one has none.")
    # What belongs to one estimator only goes back to its default.
    layer.gradient = build_gradient(config.equilibrium.with_gradient(gradient))
    layer.on_solve = "ignore"  # what solves leave unconverged was said of the model itself
    return copied


def _time_batch(task: Task, batch: Any) -> tuple[float, float]:
    task.model.zero_grad()
    start = time.perf_counter()
    loss = task.run(batch, depth=None).loss
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - middle


def _median(seconds: Sequence[float]) -> float:
    return median(seconds[1:])


def _flat_gradient(task: Task) -> Tensor:
    gradients = [parameter.grad for parameter in task.model.parameters()]
    return torch.cat(
        [gradient.flatten().double() for gradient in gradients if gradient is not None]
    )
