"""A text as token numbers, and batches of segments in which streams go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.options import check_count
from deq_zoo.data.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three parts of a text, as token numbers [N] of one vocabulary, made from the first part."""

    vocabulary: Vocabulary
    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Streams:
    """A text cut into `batch_size` streams of equal length, read in segments.

    Row b of each batch goes on where row b of the batch before ended (Dai et al. 2019,
    "Transformer-XL", section 3.2), so that what a model keeps of a row fits the next one. The last
    segment may be shorter; fewer than `batch_size` tokens at the end of the text are left out.

    Args:
        tokens: [N], any integer dtype.
        batch_size: B, number of streams.
        segment: T, tokens per row of a batch.

    Raises:
        ValueError: a number is out of its range, or the text is too short for so many streams.
    """

    tokens: Tensor
    batch_size: int
    segment: int

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("segment", self.segment)
        if self.length < 1:
            raise ValueError(
                f"{self.batch_size} streams need more than as many tokens; got "
                f"{len(self.tokens)}. Use a smaller batch_size or a longer text."
            )

    @property
    def length(self) -> int:
        """Tokens per stream; each but the text's last one has a next one to predict."""
        return (len(self.tokens) - 1) // self.batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.length // self.segment)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens and the tokens after them, both [B, T] int64, T smaller in the last batch."""
        used = self.batch_size * self.length
        rows = self.tokens[:used].view(self.batch_size, -1)
        following = self.tokens[1 : used + 1].view(self.batch_size, -1)
        for start in range(0, self.length, self.segment):
            part = slice(start, start + self.segment)
            yield rows[:, part].to(torch.int64), following[:, part].to(torch.int64)
