"""The direction of imports, and what importing the package brings in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "deq_kernels"
PACKAGE_DIR = Path(__file__).resolve().parents[1] / PACKAGE

# Rooms from the bottom to the top; nobody imports from a room above. "" is the package itself,
# which collects the public names of the rooms below it.
ROOMS = [
    {
        "_version",
        "_build",
        "compilers",
        "files",
        "json_text",
        "notices",
        "optional",
        "options",
        "threads",
    },
    {"_native"},
    {"ops"},
    {"_report"},
    {"inverse"},
    {"solvers"},
    {"gradients"},
    {"layer_arguments"},
    {"layer", "cells"},
    {""},
    {"nn", "data"},
    {"models", "diagnostics"},
    {"training", "benchmarks", "integrations"},
    {"commands"},
    {"cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}
# Those that may ask whether a binary exists; solvers and gradients never name a backend.
ASK_FOR_BINARIES = {"_native", "ops", "_report", "", "commands"}


def _room(module: str) -> str:
    return [*module.split("."), ""][1]


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE_DIR.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported_modules(source: str, *, module: str, is_package: bool) -> Iterator[str]:
    """Yield the modules of the package that the source imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _room_exists(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")
                anchor = anchor[: len(anchor) - node.level + is_package]
                base = ".".join(anchor + ([node.module] if node.module else []))
            if base == PACKAGE:
                # `from deq_kernels import x`: a room where x is one, else a name of the package.
                for alias in node.names:
                    yield f"{PACKAGE}.{alias.name}" if alias.name in HEIGHT else PACKAGE
            elif _room_exists(base):
                yield base


def _room_exists(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def _violations(source: str, *, module: str, is_package: bool = False) -> list[str]:
    room = _room(module)
    found = []
    for imported in _imported_modules(source, module=module, is_package=is_package):
        if HEIGHT[_room(imported)] > HEIGHT[room]:
            found.append(f"{module} imports {imported}, which is above it")
        if _room(imported) == "_native" and room not in ASK_FOR_BINARIES:
            found.append(f"{module} imports {imported}: only ops may know about binaries")
    return found


def test_nobody_imports_from_above() -> None:
    found = []
    for path in sorted(PACKAGE_DIR.rglob("*.py")):
        found += _violations(
            path.read_text(encoding="utf-8"),
            module=_module_name(path),
            is_package=path.name == "__init__.py",
        )
    assert not found, "\n".join(found)


def test_every_room_has_a_height() -> None:
    rooms = {_room(_module_name(path)) for path in PACKAGE_DIR.rglob("*.py")}
    assert rooms - set(HEIGHT) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import deq_kernels.layer",
        "from deq_kernels.layer import DEQ",
        "from deq_kernels import layer",
        "from deq_kernels import DEQ",
        "from ..layer import DEQ",
        "from .. import layer",
        "def late():\n    from deq_kernels.models.mdeq import MDEQ",
        "from deq_kernels._native import load",
    ],
)
def test_the_check_sees_each_way_to_import(source: str) -> None:
    assert _violations(source, module="deq_kernels.solvers.broyden")


@pytest.mark.parametrize(
    "source",
    ["import torch", "from deq_kernels.ops import broyden", "from .solution import Solution"],
)
def test_the_check_allows_what_lies_below(source: str) -> None:
    assert not _violations(source, module="deq_kernels.solvers.broyden")


def test_import_is_light_and_offline() -> None:
    """Importing the package needs torch and numpy only, and opens no socket.

    Triton is imported on a GPU alone, where it stands in for an absent CUDA library.
    """
    program = """
import socket, sys
import torch
def refuse(*args, **kwargs):
    raise AssertionError("import deq_kernels opened a socket")
socket.socket = socket.create_connection = refuse
before = set(sys.modules)
import deq_kernels
added = {name.partition(".")[0] for name in set(sys.modules) - before}
extras = {"matplotlib", "safetensors", "scipy", "sklearn", "torchdeq", "tqdm", "pybind11"}
extras |= {"jax", "jaxopt"}
if not torch.cuda.is_available():
    extras.add("triton")
print(sorted(added & extras))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=PACKAGE_DIR.parent,
    )
    assert done.stdout.strip() == "[]"
