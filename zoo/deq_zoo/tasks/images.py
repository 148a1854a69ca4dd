"""Labelled images as the tasks that classify them use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_zoo.data import cifar, digits, image_folder
from deq_zoo.data.augmentation import CropFlip
from deq_zoo.data.image_folder import FolderSplits
from deq_zoo.data.split import Splits
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, Processes
from deq_zoo.recipes.mdeq import MDEQTraining

DATASETS = {
    "digits": "1797 images of 8x8 pixels that come with scikit-learn, split at random",
    "cifar10": "cifar-10-batches-bin in --data-root, the binary version",
    "imagenet": "train/CLASS/*.JPEG and val/CLASS/*.JPEG in --data-root",
}

IMAGE_SHAPES: dict[str, tuple[int, tuple[int, int] | None, int]] = {
    "digits": (digits.IMAGE_CHANNELS, digits.IMAGE_SIZE, digits.CLASSES),
    "cifar10": (3, (32, 32), cifar.CLASSES),
    "imagenet": (3, None, 0),
}
"""Channels, size and classes; where the size is None, the model's size and classes stay."""

EVALUATION_BATCH_SIZE = 256

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Images:
    """A dataset in use.

    Attributes:
        splits: the images.
        training: the recipe, which says how they are augmented.
        processes: that share each training batch.
    """

    splits: Splits | FolderSplits
    training: MDEQTraining
    processes: Processes = ALONE

    def count(self, split: str) -> int:
        """How many images a split has."""
        return len(getattr(self.splits, split))

    def train_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """This process's share of each batch, as stored or decoded."""
        share: Callable[[Tensor], Tensor] = self.processes.share
        if isinstance(self.splits, FolderSplits):
            return self.splits.train.batches(
                batch_size, generator=generator, share=share, workers=self.training.workers
            )
        augment = CropFlip(padding=self.training.crop_padding)
        return self.splits.train.batches(
            batch_size,
            generator=generator,
            share=share,
            augment=augment if self.training.augmentation == "crop_flip" else None,
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """All images of "validation" or "test"."""
        if split not in ("validation", "test"):
            raise ValueError(f"split must be validation or test; got {split!r}.")
        part = getattr(self.splits, split)
        if isinstance(self.splits, FolderSplits):
            size = min(EVALUATION_BATCH_SIZE, self.training.batch_size)
            batches: Iterator[Batch] = part.batches(size, workers=self.training.workers)
            return batches
        return iter(part.batches(EVALUATION_BATCH_SIZE))

    def normalise(self, images: Tensor) -> Tensor:
        """Floating-point images as the model takes them."""
        return self.splits.normalise(images)


def load_images(config: RunConfig, data_root: str | None, processes: Processes = ALONE) -> Images:
    """The dataset the config names.

    Raises:
        ImportError: a package that it needs is not installed.
        OSError: it cannot be read.
        ValueError: it is damaged, does not fit the model, or an option does not fit it.
    """
    training, name = config.training, config.data
    assert isinstance(training, MDEQTraining)
    if (name == "digits") != (data_root is None):
        problem = "is bundled" if name == "digits" else "is read from disk"
        advice = "leave --data-root out" if name == "digits" else "name its folder by --data-root"
        raise ValueError(f"the dataset {name} {problem}, but data_root is {data_root!r}; {advice}")
    folder = name == "imagenet"
    if folder != (training.augmentation == "resized_crop_flip"):
        raise ValueError(
            "the augmentation resized_crop_flip goes with the dataset imagenet, the others with "
            f"other datasets; got {training.augmentation} with {name}. Set training.augmentation."
        )
    held, seed = training.validation_size, training.seed
    splits: Splits | FolderSplits
    if name == "digits":
        if held:
            raise ValueError(
                f"the digits have a validation split of their own, but validation_size is {held}; "
                "set it to 0"
            )
        splits = digits.load_digits(seed=seed)
    elif name == "cifar10":
        assert data_root is not None
        splits = cifar.load_cifar10(data_root, validation_size=held, seed=seed)
    else:
        assert data_root is not None
        height, width = config.model.image_size
        if height != width:
            raise ValueError(f"model.image_size must be square for imagenet; got {height},{width}.")
        splits = image_folder.load_image_folder(
            data_root, size=height, validation_size=held, seed=seed
        )
        if len(splits.classes) != config.model.classes:
            raise ValueError(
                f"{data_root} has {len(splits.classes)} classes, but model.classes is "
                f"{config.model.classes}; set it to what the folder has"
            )
    return Images(splits=splits, training=training, processes=processes)
