"""Writing files so that a crash loses nothing that was there before."""

from __future__ import annotations

import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file; a crash leaves either the old one or the new one, never a part.

    The bytes go to a new file in its folder, whose name no other write has and which is no link,
    and which takes the place of the old one, or of the link there, once they are on the disk. A
    process that is killed may leave that file: `unfinished_files` names those of a path.

    Raises:
        OSError: the folder does not exist, or cannot be written to; the old file is as it was.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # As open() makes files: what the user's umask leaves.
    descriptor = os.open(unfinished, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def unfinished_files(path: Path) -> list[Path]:
    """What writes of this file left that were killed, or are under way."""
    begin, end = f".{path.name}.", ".tmp"
    return [
        entry
        for entry in path.parent.iterdir()
        if entry.name.startswith(begin) and entry.name.endswith(end)
    ]


def save_figure(figure: Figure, path: Path) -> None:
    """Draw a figure into a file, in the format that its name ends in, as `write_atomically` does.

    A name without an ending gets .png.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib has no such format.
    """
    if not path.suffix:
        path = path.with_name(path.name + ".png")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."), dpi=120)
    write_atomically(path, drawn.getvalue())
