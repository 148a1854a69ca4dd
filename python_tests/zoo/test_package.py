"""The zoo as a package of its own."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import tomllib

ZOO = Path(__file__).resolve().parents[2] / "zoo"
PROJECTS = {"PIL": "pillow", "sklearn": "scikit-learn", "deq_kernels": "deq-kernels"}
"""Names that are imported, and those of the projects they come from."""


def test_what_it_imports_is_what_it_requires() -> None:
    project = tomllib.loads((ZOO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["tensorboard"]]
    required = {re.split(r"[<>=]", entry)[0] for entry in listed}
    imported = set()
    for path in (ZOO / "deq_zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "deq_zoo"}
    # TensorBoard is imported by way of torch.
    assert {PROJECTS.get(name, name) for name in imported} | {"tensorboard"} == required
