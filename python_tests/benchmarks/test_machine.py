"""The commit that a result names."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

import pytest

from benchmarks import machine


@pytest.mark.skipif(which("git") is None, reason="git is not installed")
def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    code, result = tmp_path / "code.py", tmp_path / "sub" / "résult.json"

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert machine.commit() is None
    git("init", "-q")
    assert machine.commit() is None
    assert not machine.is_clean(None)
    code.write_text("1\n")
    result.parent.mkdir()
    result.write_text("1\n")
    git("add", ".")
    git("commit", "-q", "--no-verify", "-m", "first")
    name = git("rev-parse", "--short=12", "HEAD")
    assert machine.commit() == name
    (tmp_path / "new.txt").write_text("not tracked\n")
    assert machine.commit() == name
    assert machine.is_clean(name)
    result.write_text("2\n")
    assert machine.commit() == name + "-dirty"
    assert machine.commit(besides=result) == name
    code.write_text("2\n")
    assert machine.commit(besides=result) == name + "-dirty"
    git("add", ".")
    assert machine.commit() == name + "-dirty"
    assert not machine.is_clean(name + "-dirty")
