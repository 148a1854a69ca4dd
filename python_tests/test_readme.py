"""The examples of the README that are whole programs run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
PROGRAMS = [
    block
    for block in re.findall(
        r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S
    )
    if block.startswith("import torch\n")
]


def test_there_are_programs() -> None:
    assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program: str) -> None:
    names: dict[str, object] = {}
    exec(compile(program, str(README), "exec"), names)
    assert len(names) > 3
