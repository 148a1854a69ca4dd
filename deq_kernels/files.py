"""Writing files so that a crash loses nothing that was there before."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file; a crash leaves either the old one or the new one, never a part.

    The bytes go to a file beside it, with `.tmp` added to the name, which takes the place of the
    old one once they are on the disk. A failed write may leave that file; the next one reuses it.

    Raises:
        OSError: the folder does not exist, or cannot be written to; the old file is as it was.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
