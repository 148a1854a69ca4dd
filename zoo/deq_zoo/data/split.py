"""Labelled images held in memory, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_zoo.data.augmentation import CropFlip


@dataclass(frozen=True)
class Split:
    """images [N, C, H, W], float32 or uint8, with labels [N] int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "expected images [N, C, H, W] with labels [N], got "
                f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return self.labels.shape[0]

    def head(self, count: int) -> Split:
        """The first `count` samples."""
        return Split(self.images[:count], self.labels[:count])

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        share: Callable[[Tensor], Tensor] | None = None,
        augment: CropFlip | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all samples; the last batch may be smaller.

        Args:
            batch_size: samples per batch, at least 1.
            generator: draws the order; without it the samples come in the stored order.
            share: picks from the numbers of a batch's samples those to yield; None: all of them.
            augment: changes the images; its random numbers come from the generator, too.

        Yields:
            (images [b, C, H, W], labels [b]).

        Raises:
            ValueError: batch_size is below 1, or there is nothing to augment with.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if augment is not None and generator is None:
            raise ValueError("augment needs random numbers; pass a generator.")
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        for batch in order.split(batch_size):
            places = torch.arange(len(batch))
            own = places if share is None else share(places)
            chosen = batch[own]
            images = self.images[chosen]
            if augment is not None and generator is not None:
                images = augment(images, augment.draw(len(batch), generator)[own])
            yield images, self.labels[chosen]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Disjoint images to train with, to choose by and to judge by.

    Attributes:
        train, validation, test: the images; `validation` is `test` where nothing was held out.
        mean, std: of each channel, [C], in units of the stored images, for `normalise`.
    """

    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def normalise(self, images: Tensor) -> Tensor:
        """(images − mean) / std, for floating-point images [B, C, H, W]; or as they are."""
        if self.mean is None or self.std is None:
            return images
        return normalised(images, self.mean, self.std)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images − mean) / std of each channel, for floating-point images [B, C, H, W]."""

    def per_channel(values: Sequence[float]) -> Tensor:
        # Filled where the images are: a copy from the host would make it wait for the device.
        return torch.cat([images.new_full((1, 1, 1), value) for value in values])

    return (images - per_channel(mean)) / per_channel(std)


def hold_out(split: Split, count: int, *, seed: int) -> tuple[Split, Split]:
    """Split a split: what stays, and `count` random samples, in the stored order.

    Raises:
        ValueError: there are not that many, or none would stay.
    """
    if not 0 < count < len(split):
        raise ValueError(
            f"the number of samples to hold out must lie in 1 to {len(split) - 1}, got {count}"
        )
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return (
        Split(split.images[kept], split.labels[kept]),
        Split(split.images[held], split.labels[held]),
    )
