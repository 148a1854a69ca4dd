"""MDEQ classifies images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.data import Digits, digits, load_digits
from deq_kernels.models.mdeq import MDEQ, MDEQConfig
from deq_kernels.training.choices import build_gradient, build_solver
from deq_kernels.training.headline import ACCURACY
from deq_kernels.training.presets import RunConfig
from deq_kernels.training.processes import ALONE, Processes
from deq_kernels.training.recipes.mdeq import PRESETS
from deq_kernels.training.task import Outcome, Task

EVALUATION_BATCH_SIZE = 256

DATASETS = {
    "digits": "1797 images of 8x8 pixels that come with scikit-learn, split at random",
}

Batch = tuple[Tensor, Tensor]


class MDEQTask(Task):
    """Cross entropy of the scores that MDEQ gives to images [B, C, H, W] with labels [B].

    Args:
        model: on the device of the config.
        data: training, validation and test images.
        config: of the run.
        processes: that train together.

    Raises:
        ValueError: a split has no images.
    """

    presets = PRESETS
    datasets = DATASETS
    headline = ACCURACY

    def __init__(
        self, model: MDEQ, data: Digits, config: RunConfig, processes: Processes = ALONE
    ) -> None:
        for name in ("train", "validation"):
            if len(getattr(data, name)) == 0:
                raise ValueError(
                    f"training needs at least one image in the split {name}, got none; hold out "
                    "another share"
                )
        self.model: MDEQ = model
        self.data = data
        self.config = config
        self.processes = processes
        self.device = config.machine.find_device()
        self.steps_per_epoch = -(-len(data.train) // config.training.batch_size)

    @classmethod
    def build(
        cls, config: RunConfig, *, data_root: str | None = None, processes: Processes = ALONE
    ) -> MDEQTask:
        """See `Task.build`."""
        model = build_model(config)
        return cls(model, load_data(config), config, processes)

    @classmethod
    def model_for(cls, model: MDEQConfig, data: str) -> MDEQConfig:
        """For the shape of the dataset's images, and its classes."""
        return replace(
            model,
            image_channels=digits.IMAGE_CHANNELS,
            image_size=digits.IMAGE_SIZE,
            classes=digits.CLASSES,
        )

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """Images and labels on the device, in random order."""
        size = self.config.training.batch_size
        for batch in self.data.train.batches(size, generator=generator, share=self.processes.share):
            yield self._move(batch)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """Images and labels on the device, in the stored order."""
        part = {"validation": self.data.validation, "test": self.data.test}[split]
        for batch in part.batches(EVALUATION_BATCH_SIZE):
            yield self._move(batch)

    def run(self, batch: Batch, *, depth: int | None) -> Outcome:
        """Mean cross entropy; the score is the share of images classified right."""
        images, labels = batch
        scores = self.model(images, pretrain_steps=depth)
        correct = (scores.detach().argmax(dim=1) == labels).sum()
        return Outcome(
            loss=F.cross_entropy(scores, labels),
            items=len(labels),
            score=(correct, torch.full_like(correct, len(labels))),
            solution=self.model.last_solution if depth is None else None,
        )

    def describe(self) -> str:
        """Parameters and the size of the state."""
        return f"{super().describe()}, state of {self.model.config.state_dim:,} numbers per image"

    def _move(self, batch: Batch) -> Batch:
        images, labels = batch
        dtype = self.config.machine.parameter_dtype
        return images.to(self.device, dtype), labels.to(self.device)


def load_data(config: RunConfig) -> Digits:
    """The dataset the config names."""
    return load_digits(seed=config.training.seed)


def build_model(config: RunConfig) -> MDEQ:
    """A newly initialised model with the solver and the gradient the config names."""
    model = MDEQ(
        config.model,
        solver=build_solver(config.equilibrium),
        gradient=build_gradient(config.equilibrium),
        warm_start=config.equilibrium.warm_start,
    )
    return model.to(config.machine.find_device(), config.machine.parameter_dtype)
