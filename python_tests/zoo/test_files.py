"""A file is replaced as a whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deq_zoo.files import save_figure, unfinished_files, write_atomically


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def fail(file: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("deq_zoo.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writes_at_the_same_time_leave_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    writers = [threading.Thread(target=write_atomically, args=(path, data)) for data in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the file belongs, nor where an unfinished one would lie."""
    path, elsewhere = tmp_path / "result.json", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    path.symlink_to(elsewhere)
    write_atomically(path, b"new")
    assert not path.is_symlink()
    assert path.read_bytes() == b"new"
    monkeypatch.setattr("deq_zoo.files.secrets.token_hex", lambda length: "guessed")
    unfinished = tmp_path / ".result.json.guessed.tmp"
    unfinished.symlink_to(elsewhere)
    assert unfinished_files(path) == [unfinished]
    with pytest.raises(FileExistsError):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"
    assert elsewhere.read_bytes() == b"mine"


def test_figures_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(1, 1))
    for name, begin in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    save_figure(figure, tmp_path / "b")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        *("a.PDF", "a.png", "a.svg", "b.png")
    ]
    with pytest.raises(ValueError, match="xyz"):
        save_figure(figure, tmp_path / "a.xyz")
    assert not (tmp_path / "a.xyz").exists()
