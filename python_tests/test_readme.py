"""The examples of the README and the guide that are whole programs run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/guide.md")
PROGRAMS = [
    (document, block)
    for document in DOCUMENTS
    for block in re.findall(
        r"^```python\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S
    )
    if block.startswith("import torch\n")
]


def test_there_are_programs() -> None:
    assert {document for document, _ in PROGRAMS} == set(DOCUMENTS)


@pytest.mark.parametrize(("document", "program"), PROGRAMS)
def test_programs_run(document: str, program: str) -> None:
    names: dict[str, object] = {}
    exec(compile(program, document, "exec"), names)
    assert len(names) > 3
