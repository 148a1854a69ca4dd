"""One run at a time writes to a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from deq_zoo.cli import main
from deq_zoo.folder import LOCK, RunFolderError, claimed_folder

HOLDER = """
import sys, time
from pathlib import Path
from deq_zoo.folder import claimed_folder
with claimed_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600.0)
"""


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    with claimed_folder(out):
        with pytest.raises(RunFolderError, match=r"another run is writing to .*first; wait for"):
            claimed_folder(out).__enter__()
        (out / "config.json").touch()
    with claimed_folder(out):
        pass
    assert [entry.name for entry in out.iterdir()] == ["config.json"]


def test_a_folder_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claimed_folder(tmp_path / "new"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), claimed_folder(tmp_path):
        raise KeyError
    assert tmp_path.is_dir()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    """Killed processes leave the lock's file and unfinished ones behind, which hinder nobody."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another run is writing"):
            claimed_folder(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
    (tmp_path / ".metrics.jsonl.0123456789abcdef.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    assert (tmp_path / LOCK).exists()
    with claimed_folder(tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == [".mine.tmp"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        claimed_folder(tmp_path).__enter__()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(
    not all(map(find_spec, ("sklearn", "safetensors", "matplotlib", "tqdm"))),
    reason="training needs the packages of the zoo",
)
@pytest.mark.parametrize(
    "command", [["train", "mdeq"], ["train", "mdeq", "--resume"], ["demo"]], ids=str
)
def test_commands_refuse_a_folder_in_use(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed_folder(tmp_path):
        before = list(tmp_path.iterdir())
        assert main([*command, "--out", str(tmp_path)]) == 2
        assert list(tmp_path.iterdir()) == before
    captured = capsys.readouterr()
    assert captured.err == (
        f"error: another run is writing to {tmp_path}; wait for its end, or choose another folder\n"
    )
    assert captured.out == ""
