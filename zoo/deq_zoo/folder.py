"""The folder of a run: what it holds, and that one run at a time writes to it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deq_zoo.files import unfinished_files

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
PLOT = "training.png"
LOCK = ".lock"


class RunFolderError(ValueError):
    """The output folder does not suit the run."""


class RunFolderUsedError(RunFolderError):
    """The output folder holds a run already."""


def check_folder(out: Path) -> None:
    """Make sure that a new run can be written to a folder.

    Raises:
        RunFolderUsedError: it holds the checkpoint of a run.
    """
    if (out / CHECKPOINT).exists():
        raise RunFolderUsedError(f"{out} already holds a run")


@contextmanager
def claimed_folder(out: Path) -> Iterator[None]:
    """The folder, made if needed, for this process alone while the block runs.

    Held by a lock on a file in it, which the system releases when the process ends, however it
    ends. A folder that it made and left empty is removed.

    Raises:
        RunFolderError: another run holds it.
        OSError: it cannot be made or written to, or its file system has no locks.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    descriptor = _lock(path)
    try:
        for name in (CHECKPOINT, CONFIG, METRICS, PLOT):
            for left in unfinished_files(out / name):
                left.unlink()
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made and not any(out.iterdir()):
            out.rmdir()


def _lock(path: Path) -> int:
    """A descriptor of the file, locked; who unlocks it removes the file first."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunFolderError(
                f"another run is writing to {path.parent}; wait for its end, or choose another "
                "folder"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that another run removed in between


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
