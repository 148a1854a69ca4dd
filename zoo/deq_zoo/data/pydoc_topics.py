"""English text that every Python carries: the language reference behind `help("topics")`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from deq_zoo.data.corpus import Corpus
from deq_zoo.data.vocabulary import EOS, Vocabulary

BLOCK = 24
"""Paragraphs that stay together in one part."""

VALIDATION_BLOCK, TEST_BLOCK, CYCLE = 4, 9, 10
"""Of every ten blocks, which ones are held out."""

LONG = 8
"""Words from which on a paragraph that comes again is left out."""

_WORD = re.compile(r"\w+(?:'(?:t|s|re|ve|ll|d)\b)?|([^\w\s])\1*")


def load_pydoc_topics(*, least: int = 3, topics: Mapping[str, str] | None = None) -> Corpus:
    """The topics of `pydoc_data`, word by word, in three parts.

    Words, numbers and runs of one punctuation mark are tokens, case kept; paragraphs end with
    `EOS`. Sections appear in several topics, so topics are taken from the longest to the shortest,
    and a paragraph of at least 8 words that came before is left out: no held-out paragraph is in
    the training part. Blocks of 24 paragraphs go to the parts in turn, of ten blocks one to
    validation and one to test. The vocabulary is made from the training part.

    The same Python release gives the same corpus. Releases differ in their text, and so in
    vocabulary and perplexities; a model trained under one does not fit another.

    Args:
        least: words that occur less often in the training part become `UNKNOWN`.
        topics: text by topic; None for those of this Python.

    Returns:
        About 70,000 training tokens, and 9,000 in each of the other parts.

    Raises:
        ImportError: this Python was installed without `pydoc_data`.
        ValueError: the text is too short for three parts.
    """
    if topics is None:
        try:
            from pydoc_data.topics import topics as installed
        except ImportError as error:
            raise ImportError(
                "the bundled text is the standard library's pydoc_data.topics, which this Python "
                "was installed without; install the whole standard library (on Debian the package "
                "libpython3-stdlib), or use another dataset"
            ) from error
        topics = installed
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    names = {VALIDATION_BLOCK: "validation", TEST_BLOCK: "test"}
    for i, paragraph in enumerate(_paragraphs(topics)):
        parts[names.get(i // BLOCK % CYCLE, "train")] += [*paragraph, EOS]
    if not all(parts.values()):
        raise ValueError(
            f"three parts need at least {BLOCK * TEST_BLOCK + 1} different paragraphs; got "
            f"{sum(words.count(EOS) for words in parts.values())}."
        )
    vocabulary = Vocabulary.of_counts(Counter(parts["train"]), least=least)
    return Corpus(
        vocabulary=vocabulary, **{name: vocabulary.encode(words) for name, words in parts.items()}
    )


def _paragraphs(topics: Mapping[str, str]) -> Iterator[list[str]]:
    seen: set[tuple[str, ...]] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        for text in re.split(r"\n\s*\n", topics[name]):
            words = split_words(text)
            again = len(words) >= LONG and tuple(words) in seen
            if words and not again:
                seen.add(tuple(words))
                yield words


def split_words(text: str) -> list[str]:
    """Words, numbers and runs of one punctuation mark; white space is left out."""
    return [match.group() for match in _WORD.finditer(text)]
