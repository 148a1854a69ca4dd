"""WikiText's files of words, on tiny files made in their format."""

from __future__ import annotations

from pathlib import Path

import pytest

from deq_zoo.data import DatasetError, load_wikitext

TRAIN = " \n = Robert <unk> = \n \n The film starred the actor . \n The film ended . \n \n"
VALID = " \n = Film = \n \n The actor slept . \n"
TEST = " \n = Élan = \n \n The the . \n"


def _write(folder: Path, train: bytes | None = None) -> Path:
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        (folder / f"wiki.{name}.tokens").write_bytes(text.encode())
    if train is not None:
        (folder / "wiki.train.tokens").write_bytes(train)
    return folder


def test_words_lines_and_counts(tmp_path: Path) -> None:
    corpus = load_wikitext(_write(tmp_path))
    words = corpus.vocabulary.decode(corpus.train)
    assert words[:6] == ["<eos>", "=", "Robert", "<unk>", "=", "<eos>"]
    assert words[6:13] == ["<eos>", "The", "film", "starred", "the", "actor", "."]
    assert words.count("<eos>") == TRAIN.count("\n")
    assert len(words) == len(TRAIN.split()) + TRAIN.count("\n")
    assert dict(zip(corpus.vocabulary.words, corpus.vocabulary.counts, strict=True)) == {
        word: words.count(word) for word in set(words)
    }
    assert corpus.vocabulary.words[0] == "<eos>"
    assert list(corpus.vocabulary.counts) == sorted(corpus.vocabulary.counts, reverse=True)


def test_words_that_training_lacks_are_unknown(tmp_path: Path) -> None:
    corpus = load_wikitext(_write(tmp_path))
    words = corpus.vocabulary.decode(corpus.validation)
    assert words[:6] == ["<eos>", "=", "<unk>", "=", "<eos>", "<eos>"]
    assert words[6:] == ["The", "actor", "<unk>", ".", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test)[2] == "<unk>"


def test_missing_files_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "wiki.valid.tokens").unlink()
    (tmp_path / "wiki.test.tokens").unlink()
    with pytest.raises(DatasetError, match=r"lacks wiki\.valid\.tokens, wiki\.test\.tokens"):
        load_wikitext(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n = A = \n \n The \xff film \n", r"line 4 is not \(invalid start byte at byte 5\)"),
        (TRAIN.encode()[:-9], r"ends within a line; unpack"),
        (b"", r"holds no text; unpack"),
        (b" \n \n", r"holds no text; unpack"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            r"must begin with the heading .* 'version",
        ),
        (b"\x1f\x8b\x08\n", r"line 1 is not"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_wikitext(_write(tmp_path, train=content))
