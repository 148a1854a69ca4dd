"""Words, their numbers and their counts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from deq_zoo.data import Vocabulary


def test_frequent_words_come_first_and_rare_ones_are_unknown() -> None:
    counts = Counter({"a": 5, "b": 7, "c": 1, "d": 2, "e": 5, "<eos>": 3})
    vocabulary = Vocabulary.of_counts(counts, least=2)
    assert vocabulary.words == ("b", "a", "e", "<eos>", "d", "<unk>")
    assert vocabulary.counts == (7, 5, 5, 3, 2, 1)
    tokens = vocabulary.encode(["a", "c", "nothing", "b"])
    assert tokens.tolist() == [1, 5, 5, 0]
    assert tokens.dtype == torch.int32
    assert vocabulary.decode(tokens) == ["a", "<unk>", "<unk>", "b"]


def test_a_rare_unknown_of_the_text_is_kept() -> None:
    vocabulary = Vocabulary.of_counts(Counter({"a": 3, "b": 1, "<unk>": 4}), least=2)
    assert vocabulary.words == ("<unk>", "a", "<eos>")
    assert vocabulary.counts == (5, 3, 0)


@pytest.mark.parametrize(
    ("words", "counts", "message"),
    [
        (("<eos>", "<unk>", "<unk>"), (1, 1, 1), "3 words, 2 of them different"),
        (("<eos>", "<unk>"), (1,), "and 1 counts"),
        (("<eos>", "a"), (1, 1), "it lacks one of them"),
    ],
)
def test_refusals(words: tuple[str, ...], counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(words, counts)
