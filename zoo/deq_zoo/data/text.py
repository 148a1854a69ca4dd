"""Tables of numbers in text files, with errors that say where."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deq_zoo.data.errors import DatasetError

T = TypeVar("T", bound=np.generic)


def read_text(path: Path) -> str:
    """The file as UTF-8.

    Raises:
        DatasetError: there is no such file, it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; a folder with all files is needed") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text file: {error}") from error
    except OSError as error:
        raise DatasetError(f"{path} must be a file that can be read: {error}") from error


def read_table(
    path: Path, dtype: type[T], *, columns: int | None = None, separator: str | None = ","
) -> NDArray[T]:
    """Lines with equally many finite numbers each, [lines, columns]; none for an empty file.

    Args:
        path: the file.
        dtype: np.int64, say.
        columns: how many there must be; None for what the first line has.
        separator: between numbers; None for white space.

    Raises:
        DatasetError: the file is missing, or holds something else.
    """
    text = read_text(path)
    if not text.strip():
        return np.zeros((0, columns or 0), dtype)
    try:
        # NumPy reads whole numbers by way of floating-point ones, with a warning, where it has to.
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            table = np.loadtxt(
                io.StringIO(text), dtype=dtype, delimiter=separator, comments=None, ndmin=2
            )
    except (DeprecationWarning, OverflowError, ValueError) as error:
        kind = np.dtype(dtype).name
        raise DatasetError(f"{path} must hold numbers ({kind}) in every line: {error}") from error
    if columns is not None and table.shape[1] != columns:
        raise DatasetError(
            f"{path} must hold {columns} numbers per line; got {table.shape[1]} per line"
        )
    if not np.isfinite(table).all():
        line = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0]) + 1
        raise DatasetError(f"{path} must hold finite numbers; line {line} does not")
    return table


def read_counts(path: Path) -> NDArray[np.int64]:
    """One whole number per line, [lines].

    Raises:
        DatasetError: see `read_table`.
    """
    return read_table(path, np.int64, columns=1)[:, 0]
