"""Reports written as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deq_zoo.files import write_atomically


def save_report(report: Any, path: Path) -> None:
    """Write a dataclass as JSON; a crash leaves either the old file or the new one."""
    text = json.dumps(asdict(report), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
