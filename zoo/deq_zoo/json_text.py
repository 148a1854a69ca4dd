"""JSON from files that may be damaged, or made to do harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value that a text in JSON stands for.

    Raises:
        ValueError: it is not JSON or not UTF-8, nests too deeply, or holds a whole number of
            thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests lists or objects too deeply") from error


def read_json(path: Path) -> Any:
    """The value that a file in JSON holds.

    Raises:
        OSError: it cannot be read.
        ValueError: see `parse_json`.
    """
    return parse_json(path.read_bytes().decode("utf-8"))
