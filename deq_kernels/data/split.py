"""Labelled images held in memory, and batches of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """images [N, C, H, W] float32 with labels [N] int64."""

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

    def head(self, count: int) -> "Split":
        """The first `count` samples."""
        return Split(self.images[:count], self.labels[:count])

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over all samples; the last batch may be smaller.

        Args:
            batch_size: samples per batch, at least 1.
            generator: draws the order; without it the samples come in the stored order.
            share: picks from the numbers of a batch's samples those to yield; None: all of them.

        Yields:
            (images [b, C, H, W], labels [b]).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        for batch in order.split(batch_size):
            chosen = batch if share is None else share(batch)
            yield self.images[chosen], self.labels[chosen]
