"""What the training loop knows of a model and its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deq_kernels import DEQ
from deq_kernels.solvers import Solution
from deq_zoo.measure import Measure
from deq_zoo.presets import Preset, RunConfig
from deq_zoo.processes import ALONE, Processes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a model made of one batch. Tensors stay on its device: the host must not wait.

    Attributes:
        loss: 0-d and differentiable, the mean over the batch's items; the task's loss alone.
        items: how many items that mean is over (images, tokens, graphs, nodes).
        score: numerator and denominator, 0-d, of a ratio that is summed over batches: how many
            items were classified right and how many there were, say; None where nothing is scored.
        solution: of the forward solve, where there was one.
    """

    loss: Tensor
    items: int
    score: tuple[Tensor, Tensor] | None = None
    solution: Solution | None = None


class Task(ABC):
    """One model on one dataset. A subclass is registered in `training.registry`.

    Attributes:
        presets: all presets, by name; the first one is the default.
        datasets: names of the datasets, with what `--help` says of them; the first one is the
            default for presets that name none.
        measure: the number that a run is judged by.
        model: built for the config. It has an attribute `deq`, its `DEQ` layer, unless it solves
            otherwise; compilation and Jacobian regularisation need it.
        steps_per_epoch: training batches in one epoch.
    """

    presets: ClassVar[Mapping[str, Preset]]
    datasets: ClassVar[Mapping[str, str]]
    measure: ClassVar[Measure]

    model: nn.Module
    steps_per_epoch: int

    @classmethod
    @abstractmethod
    def build(
        cls, config: RunConfig, *, data_root: str | None = None, processes: Processes = ALONE
    ) -> Task:
        """The model, newly initialised from torch's global generator, and its data.

        Args:
            config: of the run; its `data` is one of `datasets`.
            data_root: folder of a dataset that is read from disk.
            processes: that train together; each gets its own share of every training batch, which
                may be empty, and all of the evaluation data.

        Raises:
            ImportError: a package that the dataset needs is not installed.
            OSError, ValueError: the dataset cannot be read, or an option does not fit it.
        """

    @classmethod
    def model_for(cls, model: Any, data: str) -> Any:
        """A preset's model config, adapted to a dataset that it was not made for.

        Args:
            model: the config.
            data: one of `datasets`.

        Raises:
            ValueError: it does not fit.
        """
        return model

    @abstractmethod
    def batches(self, generator: torch.Generator) -> Iterator[Any]:
        """One epoch of training batches; whatever is random comes from `generator` alone.

        All processes draw the same numbers, and yield the same number of batches; None stands for
        a batch of which nothing is this process's share.
        """

    @abstractmethod
    def evaluation_batches(self, split: str) -> Iterator[Any]:
        """All batches of a split, "validation" or "test", in a fixed order."""

    @abstractmethod
    def run(self, batch: Any, *, depth: int | None) -> Outcome:
        """The model on one batch, in the mode (training or evaluation) that it is in.

        Args:
            batch: from `batches` or `evaluation_batches`.
            depth: applications of the cell from the start, in pretraining; None: its equilibrium.
        """

    @property
    def layer(self) -> DEQ | None:
        """The model's `DEQ` layer, if it has one."""
        layer = getattr(self.model, "deq", None)
        return layer if isinstance(layer, DEQ) else None

    def describe(self) -> str:
        """One line about model and data, for the user."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{parameters:,} parameters"

    def start_epoch(self) -> None:  # noqa: B027 - most tasks carry nothing from batch to batch
        """Called before an epoch's first batch: forget what is carried from batch to batch."""

    def start_evaluation(self, split: str) -> None:  # noqa: B027 - the same
        """Called before a split's first batch: forget what is carried from batch to batch."""

    def after_step(self) -> None:  # noqa: B027 - most parameters are free
        """Called after each step of the optimiser, without autograd: project the parameters."""
