"""MDEQ classifies images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.models.mdeq import MDEQ, MDEQConfig
from deq_zoo.choices import build_gradient, build_solver
from deq_zoo.measure import ACCURACY
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, Processes
from deq_zoo.recipes.mdeq import PRESETS, MDEQTraining
from deq_zoo.task import Outcome, Task
from deq_zoo.tasks.images import DATASETS, IMAGE_SHAPES, Images, load_images

Batch = tuple[Tensor, Tensor]


class MDEQTask(Task):
    """Cross entropy of the scores that MDEQ gives to images [B, C, H, W] with labels [B].

    Args:
        model: on the device of the config.
        data: training, validation and test images.
        config: of the run.

    Raises:
        ValueError: a split has no images.
    """

    presets = PRESETS
    datasets = DATASETS
    measure = ACCURACY

    def __init__(self, model: MDEQ, data: Images, config: RunConfig) -> None:
        for name in ("train", "validation"):
            if data.count(name) == 0:
                raise ValueError(
                    f"training needs at least one image in the split {name}, got none; hold out "
                    "another share"
                )
        self.model: MDEQ = model
        self.data = data
        self.config = config
        self.device = config.machine.find_device()
        self.steps_per_epoch = -(-data.count("train") // config.training.batch_size)

    @classmethod
    def build(
        cls, config: RunConfig, *, data_root: str | None = None, processes: Processes = ALONE
    ) -> MDEQTask:
        """See `Task.build`."""
        return cls(build_model(config), load_images(config, data_root, processes), config)

    @classmethod
    def model_for(cls, model: MDEQConfig, data: str) -> MDEQConfig:
        """For the shape of the dataset's images, and its classes."""
        channels, size, classes = IMAGE_SHAPES[data]
        if size is None:
            return replace(model, image_channels=channels)
        return replace(model, image_channels=channels, image_size=size, classes=classes)

    def batches(self, generator: torch.Generator) -> Iterator[Batch | None]:
        """Images and labels on the device, in random order, augmented as the recipe says."""
        for batch in self.data.train_batches(self.config.training.batch_size, generator):
            yield self._move(batch) if len(batch[1]) else None

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """Images and labels on the device, in the stored order."""
        for batch in self.data.evaluation_batches(split):
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
        machine = self.config.machine
        images, labels = batch
        if self.device.type == "cuda":
            # From pinned memory the host does not wait for the copy.
            images, labels = images.pin_memory(), labels.pin_memory()
        images = images.to(self.device, non_blocking=True).to(machine.parameter_dtype)
        images = self.data.normalise(images)
        if self.data.training.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels.to(self.device, non_blocking=True)


def build_model(config: RunConfig) -> MDEQ:
    """A newly initialised model with the solver and the gradient the config names."""
    model = MDEQ(
        config.model,
        solver=build_solver(config.equilibrium),
        gradient=build_gradient(config.equilibrium),
        warm_start=config.equilibrium.warm_start,
    )
    machine = config.machine
    model = model.to(machine.find_device(), machine.parameter_dtype)
    training = config.training
    if isinstance(training, MDEQTraining) and training.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    return model
