"""One registry of solvers and one of gradients: everything that offers them offers all of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import deq_kernels as dk
from deq_kernels.integrations import torchdeq as drop_in
from deq_kernels.solvers.root_finding import METHODS

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide.md"


def _public_classes(package: str, base: type) -> set[type]:
    """The concrete classes in the files right below a package that are no part of another one."""
    path = importlib.import_module(package).__path__
    found = set()
    for module in pkgutil.iter_modules(path, package + "."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, base) and kind.__module__ == module.name:
                found.add(kind)
    return found


def test_every_solver_is_registered() -> None:
    named = set(dk.solvers.SOLVERS.values())
    assert len(named) == len(dk.solvers.SOLVERS)
    assert _public_classes("deq_kernels.solvers", dk.Solver) == {*named, dk.Solver}


def test_every_gradient_is_registered() -> None:
    named = set(dk.gradients.GRADIENTS.values())
    assert len(named) == len(dk.gradients.GRADIENTS)
    abstract = {dk.Gradient, dk.gradients.AdjointGradient}
    assert _public_classes("deq_kernels.gradients", dk.Gradient) == named | abstract


@pytest.mark.parametrize("kind", [*dk.solvers.SOLVERS.values(), *dk.gradients.GRADIENTS.values()])
def test_the_package_exports_them(kind: type) -> None:
    assert getattr(dk, kind.__name__) is kind
    assert kind.__name__ in dk.__all__


def test_registries_cannot_be_changed() -> None:
    for registry in (dk.solvers.SOLVERS, dk.gradients.GRADIENTS):
        with pytest.raises(TypeError):
            registry["another"] = dk.Broyden  # type: ignore[index]


def test_root_and_the_drop_in_know_every_solver() -> None:
    assert list(METHODS.values()) == list(dk.solvers.SOLVERS.values())
    assert list(METHODS)[:3] == ["broyden1", "anderson", "linearmixing"]
    offered = {name: own.solver for name, own in drop_in.OWN_SOLVERS.items()}
    assert offered == {f"dk_{name}": kind for name, kind in dk.solvers.SOLVERS.items()}
    for name in offered:
        assert getattr(drop_in, name, drop_in.OWN_SOLVERS[name]) is drop_in.OWN_SOLVERS[name]


@pytest.mark.parametrize(
    ("first", "registry"),
    [("Solver", dk.solvers.SOLVERS), ("Gradient", dk.gradients.GRADIENTS)],
)
def test_the_guide_lists_them(first: str, registry: dict[str, type]) -> None:
    """In the table whose first columns are the class and its name."""
    text = GUIDE.read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| {first} \| Name \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    rows = re.findall(r"^\| `(\w+)\(.*?\)` \| `(\w+)` \|", table, re.M)
    assert len(rows) == table.count("\n")
    assert {name: kind for kind, name in rows} == {
        name: kind.__name__ for name, kind in registry.items()
    }
