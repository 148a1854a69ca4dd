"""WikiText-103 (or WikiText-2) from its files of words, `wiki.train.tokens` and so on."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from deq_zoo.data.corpus import Corpus
from deq_zoo.data.errors import DatasetError
from deq_zoo.data.vocabulary import EOS, Vocabulary

FILES = {
    "train": "wiki.train.tokens",
    "validation": "wiki.valid.tokens",
    "test": "wiki.test.tokens",
}


def load_wikitext(folder: str | Path) -> Corpus:
    """Read the three files of words (Merity et al. 2016).

    Words are what stands between white space, as the files have them, their <unk> included; every
    line ends with `EOS`, blank ones too. The vocabulary is all words of the training file: 267,735
    for WikiText-103, whose training part then has 103,227,021 tokens. The training file is read
    twice, line by line; the tokens take 4 bytes each.

    Args:
        folder: that holds the files; nothing is written to it.

    Raises:
        DatasetError: a file is missing, is not UTF-8, does not begin with a heading, or ends within
            a line.
    """
    paths = {part: Path(folder) / name for part, name in FILES.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DatasetError(
            f"a WikiText folder holds {', '.join(FILES.values())}; {folder} lacks "
            f"{', '.join(missing)}. Unpack wikitext-103-v1.zip (the files of words, not the raw "
            "ones) and name the folder inside."
        )
    counts: Counter[str] = Counter()
    for line in _lines(paths["train"]):
        counts.update(line)
    vocabulary = Vocabulary.of_counts(counts)
    return Corpus(
        vocabulary=vocabulary,
        **{part: _encode(path, vocabulary) for part, path in paths.items()},
    )


def _encode(path: Path, vocabulary: Vocabulary) -> Tensor:
    tokens = array("i")
    for line in _lines(path):
        tokens.extend(vocabulary.numbers(line))
    return torch.frombuffer(tokens, dtype=torch.int32)


def _lines(path: Path) -> Iterator[list[str]]:
    """The words of each line, with `EOS` at the end."""
    begun = complete = False
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{path} must be UTF-8, but line {number} is not ({error.reason} at byte "
                    f"{error.start}); unpack the archive again"
                ) from error
            words = line.split()
            if words and not begun:
                if len(words) < 3 or words[0] != "=" or words[-1] != "=":
                    raise DatasetError(
                        f"{path} must begin with the heading of an article, '= Title ='; got "
                        f"{line[:60]!r}. Name a folder with WikiText's files of words."
                    )
                begun = True
            complete = line.endswith("\n")
            yield [*words, EOS]
    if not begun or not complete:
        raise DatasetError(
            f"{path} {'ends within a line' if begun else 'holds no text'}; unpack the archive again"
        )
