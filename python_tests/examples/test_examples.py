"""Every example runs, and shows what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("core", "solver"),
    [
        ("indexing", "broyden"),
        ("sliced", "broyden"),
        ("sliced", "anderson"),
        ("indexing", "fixed_point_iter"),
    ],
)
def test_torchdeq_digits(core: str, solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchdeq")
    losses = load("torchdeq_digits").main(["--quick", "--core", core, "--solver", solver])
    theirs, ours, shine = losses.values()
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert shine[0] == pytest.approx(theirs[0], rel=1e-3)
    for trained in losses.values():
        assert trained[-1] < 0.9 * trained[0]
    assert "deq_kernels with SHINE" in capsys.readouterr().out


def test_locuslab_digits(capsys: pytest.CaptureFixture[str]) -> None:
    losses = load("locuslab_digits").main(["--quick"])
    assert list(losses) == ["exact", "shine", "phantom"]
    for trained in losses.values():
        assert trained[-1] < trained[0]
    assert losses["shine"][0] == pytest.approx(losses["exact"][0])
    assert "solver steps" in capsys.readouterr().out


def test_scipy_bratu(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("scipy_bratu").main(["--quick"]) < 1e-8
    assert "4 of 4 samples converged" in capsys.readouterr().out


def test_the_readme_lists_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert names
    for name in names:
        assert f"| `{name}` |" in readme
