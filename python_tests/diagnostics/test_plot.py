"""The picture of a diagnosis."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import deq_kernels as dk
from deq_kernels.diagnostics import Diagnosis, diagnose


@pytest.fixture
def diagnosis() -> Diagnosis:
    weight = torch.full((4,), 0.5, requires_grad=True)
    layer = dk.DEQ(lambda z: weight * torch.cos(z))
    return diagnose(layer, torch.zeros(3, 4), parameters=[weight])


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="plots need matplotlib")
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_written(diagnosis: Diagnosis, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"diagnosis.{suffix}"
    diagnosis.plot(path)
    written = path.read_bytes()
    assert written.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert b"forward solve" in written


def test_without_matplotlib_the_extra_is_named(
    diagnosis: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="it comes with the extra 'plot'"):
        diagnosis.plot(tmp_path / "diagnosis.png")
