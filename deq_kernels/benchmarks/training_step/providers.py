"""Who is compared on training steps, behind one signature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.training.task import Task

from ..provider import OURS, Provider
from .problem import StepProblem, layer_of
from .torchdeq_layer import TorchdeqLayer

SEED = 0
"""Of the dropout masks, the same for everybody."""


class Step:
    """A training step in its two halves, on one batch after the other.

    Args:
        task: with a model that nobody else has.
        problem: whose batches are taken in turn.
    """

    def __init__(self, task: Task, problem: StepProblem) -> None:
        self.task = task
        self._problem = problem
        self._taken = 0
        self._loss: Tensor | None = None

    def forward(self) -> None:
        """The loss of the next batch."""
        batches = self._problem.batches
        batch = batches[self._taken % len(batches)]
        self._taken += 1
        torch.manual_seed(SEED)
        self._loss = self.task.run(batch, depth=None).loss

    def backward(self) -> None:
        """The gradients of that loss."""
        assert self._loss is not None, "backward needs a forward before it"
        self.task.model.zero_grad()
        self._loss.backward()
        self._loss = None

    def gradient(self) -> Tensor:
        """All parameters' gradients in one vector, in float64 on the CPU."""
        gradients = [p.grad for p in self.task.model.parameters() if p.grad is not None]
        return torch.cat([gradient.flatten().double().cpu() for gradient in gradients])

    @property
    def steps(self) -> int | None:
        """Evaluations of the cell in the last forward solve, of the sample that took most."""
        layer = getattr(self.task.model, "deq", None)
        if isinstance(layer, TorchdeqLayer):
            return layer.steps
        solution = layer_of(self.task).last_solution
        return None if solution is None else int(solution.steps.max())


Bind = Callable[[StepProblem], Step]
"""Prepares a provider's model; it is not timed."""


def _ours(problem: StepProblem) -> Step:
    return Step(problem.copy(), problem)


def _ours_warm(problem: StepProblem) -> Step:
    return Step(problem.copy(warm_start=True), problem)


def _torchdeq(problem: StepProblem) -> Step:
    task = problem.copy()
    model = task.model
    model.deq = TorchdeqLayer(layer_of(task), problem.config.equilibrium)
    return Step(task, problem)


PROVIDERS: tuple[Provider[Bind], ...] = (
    Provider(OURS, "deq_kernels", lambda device: _ours),
    Provider(
        "ours-warm",
        "deq_kernels, each solve starting from the solution of the batch before",
        lambda device: _ours_warm,
    ),
    Provider(
        "torchdeq", "the same model with torchdeq's solvers and gradients", lambda device: _torchdeq
    ),
)
