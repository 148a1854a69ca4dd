"""The direction of imports, the three places, and what importing the package brings in."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "deq_kernels"
PACKAGE_DIR = ROOT / PACKAGE
ZOO_DIR = ROOT / "zoo" / "deq_zoo"
BENCHMARKS_DIR = ROOT / "benchmarks"

# Rooms from the bottom to the top; nobody imports from a room above. "" is the package itself,
# which collects the public names of the rooms below it.
ROOMS = [
    {"_version", "_build", "compilers", "notices", "optional", "options"},
    {"_native"},
    {"_launches"},
    {"ops"},
    {"_report", "cells"},
    {"inverse"},
    {"solvers"},
    {"gradients"},
    {"layer_arguments"},
    {"layer"},
    {""},
    {"nn"},
    {"models", "diagnostics"},
    {"integrations"},
    {"program", "info", "cli"},
]
HEIGHT = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}
# Those that may ask whether a binary exists; solvers and gradients never name a backend.
ASK_FOR_BINARIES = {"_native", "_launches", "ops", "_report", "", "info"}


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


def _imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every (module, name) that a file imports absolutely; None where the module is all."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)


def _foreign(folder: Path, places: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted(folder.rglob("*.py"))
        for module, _ in _imports_of(path)
        if module.split(".")[0] in places
    ]


def test_the_library_knows_nothing_of_what_measures_and_trains() -> None:
    assert _foreign(PACKAGE_DIR, {"benchmarks", "deq_zoo", "python_tests"}) == []


def test_the_zoo_measures_nothing() -> None:
    assert _foreign(ZOO_DIR, {"benchmarks", "python_tests"}) == []


def test_the_zoo_uses_public_names_of_the_library() -> None:
    """Those in the `__all__` of the package, or of a room in it."""
    hidden = []
    for path in sorted(ZOO_DIR.rglob("*.py")):
        for module, name in _imports_of(path):
            if module.split(".")[0] != PACKAGE:
                continue
            public = getattr(importlib.import_module(module), "__all__", ())
            if name is None or name not in public:
                hidden.append(f"{path.relative_to(ROOT)}: {name or 'all'} of {module}")
    assert hidden == []


def test_methods_stand_on_their_machinery() -> None:
    """`solvers/machinery` knows what a solver is, and no method."""
    methods = {path.stem for path in (PACKAGE_DIR / "solvers").glob("*.py")}
    methods -= {"__init__", "base", "solution"}
    found = [
        f"{path.name} imports {module}"
        for path in (PACKAGE_DIR / "solvers" / "machinery").glob("*.py")
        for module, _ in _imports_of(path)
        if module.startswith(f"{PACKAGE}.solvers.") and module.split(".")[2] in methods
    ]
    assert found == []


def _without_annotations(tree: ast.Module) -> ast.Module:
    """Without the blocks that only a type checker reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def _imported(tree: ast.Module, modules: Collection[str]) -> set[str]:
    """The modules that run when the imports of a file do, wherever in the file they stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & set(modules)


def test_no_circle_of_imports() -> None:
    """Modules of the library import each other without circles, within functions too."""
    modules = {_module_name(path): path for path in PACKAGE_DIR.rglob("*.py")}
    graph = {}
    for module, path in modules.items():
        tree = _without_annotations(ast.parse(path.read_text(encoding="utf-8")))
        graph[module] = _imported(tree, modules) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_late_import_counts() -> None:
    source = "def f():\n    import a.b\n    from a import c, d\nif TYPE_CHECKING:\n    import e"
    tree = _without_annotations(ast.parse(source))
    assert _imported(tree, {"a", "a.b", "a.c", "e"}) == {"a", "a.b", "a.c"}


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
