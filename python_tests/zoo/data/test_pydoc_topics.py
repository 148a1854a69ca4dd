"""The text that comes with Python."""

from __future__ import annotations

import sys

import pytest

from deq_zoo.data import Vocabulary, load_pydoc_topics
from deq_zoo.data.pydoc_topics import split_words


def _paragraphs(vocabulary: Vocabulary, tokens: object) -> set[str]:
    return {" ".join(words) for words in _split(vocabulary.decode(tokens))}  # type: ignore[arg-type]


def _split(words: list[str]) -> list[list[str]]:
    paragraphs: list[list[str]] = [[]]
    for word in words:
        if word == "<eos>":
            paragraphs.append([])
        else:
            paragraphs[-1].append(word)
    return paragraphs


def test_sizes_and_words() -> None:
    corpus = load_pydoc_topics()
    assert 50_000 < len(corpus.train) < 200_000
    for held_out in (corpus.validation, corpus.test):
        assert 0.08 < len(held_out) / len(corpus.train) < 0.2
    assert 1_000 < len(corpus.vocabulary) < 5_000
    assert min(corpus.vocabulary.counts) >= 3
    assert sum(corpus.vocabulary.counts) == len(corpus.train)
    assert {"the", "Python", "lambda", ".", "<eos>"} <= set(corpus.vocabulary.words)
    assert corpus.train.max() < len(corpus.vocabulary)


def test_the_same_every_time() -> None:
    first, second = load_pydoc_topics(), load_pydoc_topics()
    assert first.vocabulary == second.vocabulary
    assert first.train.equal(second.train)
    assert first.validation.equal(second.validation)


def test_long_paragraphs_are_in_one_part_only() -> None:
    # With all words known, so that different paragraphs differ.
    corpus = load_pydoc_topics(least=1)
    parts = [
        _paragraphs(corpus.vocabulary, tokens)
        for tokens in (corpus.train, corpus.validation, corpus.test)
    ]
    for i, held_out in enumerate(parts[1:], start=1):
        elsewhere = set().union(*parts[:i], *parts[i + 1 :])
        common = {p for p in held_out & elsewhere if p.count(" ") >= 7 and "<unk>" not in p}
        assert not common


def test_blocks_go_to_the_parts_in_turn() -> None:
    text = "\n\n".join(f"paragraph{i}" for i in range(480))
    corpus = load_pydoc_topics(least=1, topics={"topic": text + "\n\nparagraph0"})
    words = corpus.vocabulary.decode(corpus.train)
    assert "paragraph95" in words
    assert not {"paragraph96", "paragraph119", "paragraph216", "paragraph239"} & set(words)
    assert len(corpus.validation) == len(corpus.test) == 2 * 24 * 2
    # Short paragraphs may come again.
    assert words.count("paragraph0") == 2


def test_words() -> None:
    assert split_words("It isn't x_1 ** 2.5,\n***** 'a'") == (
        ["It", "isn't", "x_1", "**", "2", ".", "5", ",", "*****", "'", "a", "'"]
    )


def test_a_text_too_short_for_three_parts() -> None:
    with pytest.raises(ValueError, match="at least 217 different paragraphs; got 1"):
        load_pydoc_topics(topics={"a": "b"})


def test_a_python_without_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ImportError, match="install the whole standard library"):
        load_pydoc_topics()
