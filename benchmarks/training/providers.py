"""Who is compared on training steps, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_kernels import DEQ
from deq_kernels.solvers import Solution
from deq_zoo.task import Task

from ..provider import OURS, Provider, ProviderAbsentError
from .problem import StepProblem
from .torchdeq_layer import TorchdeqLayer

SEED = 0
"""Of the dropout masks of the first batch. Every batch has its own, as in training, and the same
ones for every provider."""


class Step:
    """A training step in its two halves, on one batch after the other.

    Args:
        task: with a model of its own.
        problem: whose batches are taken in turn.
    """

    def __init__(self, task: Task, problem: StepProblem) -> None:
        self.task = task
        self._problem = problem
        self._taken = 0
        self._batch: Any = None
        self._loss: Tensor | None = None
        self._solution: Solution | None = None

    def take_batch(self) -> None:
        """Go on to the next batch; not timed."""
        batches = self._problem.batches
        turn = self._taken % len(batches)
        self._batch = batches[turn]
        self._taken += 1
        torch.manual_seed(SEED + turn)

    def forward(self) -> None:
        """The loss of the batch taken."""
        assert self._batch is not None, "forward needs a batch"
        outcome = self.task.run(self._batch, depth=None)
        self._batch = None
        self._loss, self._solution = outcome.loss, outcome.solution

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
        peers = [m for m in self.task.model.modules() if isinstance(m, TorchdeqLayer)]
        if peers:
            return max(peer.steps or 0 for peer in peers)
        return None if self._solution is None else int(self._solution.steps.max())


Bind = Callable[[StepProblem], Step]
"""Prepares a provider's model; it is not timed."""


def _ours(problem: StepProblem) -> Step:
    return Step(problem.copy(), problem)


def _ours_warm(problem: StepProblem) -> Step:
    return Step(problem.copy({"equilibrium.warm_start": True}), problem)


def _ours_compact(problem: StepProblem) -> Step:
    if problem.task.layer is None:
        raise ProviderAbsentError("structured cells leave out stopped samples by themselves")
    return Step(problem.copy({"equilibrium.compact": True}), problem)


def _ours_warm_compact(problem: StepProblem) -> Step:
    if problem.task.layer is None:
        raise ProviderAbsentError("structured cells leave out stopped samples by themselves")
    changes = {"equilibrium.warm_start": True, "equilibrium.compact": True}
    return Step(problem.copy(changes), problem)


def _torchdeq(problem: StepProblem) -> Step:
    # Where ours solves in one op, torchdeq evaluates the same cell step by step.
    task = problem.copy()
    for module in list(task.model.modules()):
        layer = getattr(module, "deq", None)
        if isinstance(layer, DEQ):
            module.deq = TorchdeqLayer(layer, problem.config.equilibrium)
    return Step(task, problem)


PROVIDERS: tuple[Provider[Bind], ...] = (
    Provider(OURS, "deq_kernels", lambda device: _ours),
    Provider(
        "ours-compact",
        "deq_kernels, the cell evaluated on the samples that still run",
        lambda device: _ours_compact,
    ),
    Provider(
        "ours-warm",
        "deq_kernels, each solve starting from the solution of the batch before",
        lambda device: _ours_warm,
    ),
    Provider("ours-warm-compact", "deq_kernels, both together", lambda device: _ours_warm_compact),
    Provider(
        "torchdeq", "the same model with torchdeq's solvers and gradients", lambda device: _torchdeq
    ),
)
