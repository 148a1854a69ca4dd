"""The words of a text, numbered by how often they occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

EOS = "<eos>"
"""Ends a line or a paragraph."""

UNKNOWN = "<unk>"
"""Stands for every word that is not in the vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """Words by token number, the most frequent first, which is what adaptive softmaxes want.

    Attributes:
        words: of tokens 0, 1, ...; `EOS` and `UNKNOWN` are among them.
        counts: how often each occurs in the training text, as long as `words`.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    _number: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        number = {word: i for i, word in enumerate(self.words)}
        if len(self.counts) != len(self.words) or len(number) != len(self.words):
            raise ValueError(
                f"a vocabulary needs different words, each with its count; got {len(self.words)} "
                f"words, {len(number)} of them different, and {len(self.counts)} counts."
            )
        if EOS not in number or UNKNOWN not in number:
            raise ValueError(f"a vocabulary must hold {EOS} and {UNKNOWN}; it lacks one of them.")
        object.__setattr__(self, "_number", number)

    @staticmethod
    def of_counts(counts: Counter[str], *, least: int = 1) -> Vocabulary:
        """The words that occur at least `least` times; the others count as `UNKNOWN`.

        Equally frequent words come in alphabetical order, so equal counts give equal vocabularies.
        """
        kept = {word: count for word, count in counts.items() if count >= least}
        rare = sum(count for count in counts.values() if count < least)
        kept[UNKNOWN] = kept.get(UNKNOWN, 0) + rare
        kept.setdefault(EOS, 0)
        ordered = sorted(kept, key=lambda word: (-kept[word], word))
        return Vocabulary(tuple(ordered), tuple(kept[word] for word in ordered))

    def __len__(self) -> int:
        return len(self.words)

    def numbers(self, words: Iterable[str]) -> list[int]:
        """Token numbers; words that are not known become `UNKNOWN`."""
        unknown = self._number[UNKNOWN]
        return [self._number.get(word, unknown) for word in words]

    def encode(self, words: Iterable[str]) -> Tensor:
        """Token numbers [N] int32."""
        return torch.tensor(self.numbers(words), dtype=torch.int32)

    def decode(self, tokens: Tensor) -> list[str]:
        """The words of token numbers [N]."""
        return [self.words[token] for token in tokens.tolist()]
