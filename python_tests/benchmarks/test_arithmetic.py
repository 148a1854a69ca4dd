"""How many cores' worth of arithmetic the threads of a benchmark get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.arithmetic import ArithmeticProbe
from benchmarks.cells.cell_report import CaseResult, CellReport
from benchmarks.text import markdown_origin, neighbours, warnings
from benchmarks.timing import time_interleaved


def test_a_ratio_within_rounds(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    probe = ArithmeticProbe("cpu")
    one, every = probe.calls
    assert probe.cores({one: (2.0, 6.0, 3.0), every: (1.0, 2.0, 3.0)}) == 2.0
    assert probe.cores({}) is None


def test_it_is_timed_with_one_thread_and_with_all(
    set_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads(2)
    seen: list[int] = []
    probe = ArithmeticProbe("cpu")
    monkeypatch.setattr(torch, "mm", lambda *_, **__: seen.append(torch.get_num_threads()))
    seconds = time_interleaved(probe.calls, rounds=1, say=lambda _: None)
    assert set(seen) == {1, 2}
    cores = probe.cores(seconds)
    assert cores is not None
    assert cores > 0.0
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("device", "threads"), [("cpu", 1), ("cuda", 2)])
def test_where_there_is_nothing_to_find_out(
    set_threads: Callable[[int], None], device: str, threads: int
) -> None:
    set_threads(threads)
    probe = ArithmeticProbe(device)
    assert probe.calls == {}
    assert probe.cores({}) is None


def _report(cores: float | None) -> CellReport:
    case = CaseResult(
        name="1x5x2",
        graphs=1,
        nodes=5,
        features=2,
        entries=9,
        other_load_cores=0.01,
        solve=(),
        adjoint=(),
        arithmetic_cores=cores,
    )
    return CellReport(
        suite="cells",
        schema=1,
        date="2026-01-01",
        commit=None,
        machine={"device": "cpu", "cpu": "x", "threads": 2, "torch_isa": "y"},
        versions={},
        dtype="float32",
        rounds=1,
        providers={},
        tolerance=3e-6,
        cases=(case,),
    )


def test_threads_without_a_core_each_are_told() -> None:
    crowded, fine = _report(1.2), _report(1.9)
    assert crowded.crowded_cases == ("1x5x2",)
    assert any("did not get a core each during 1x5x2" in text for text in warnings(crowded))
    assert any("did not get a core each" in text for text in markdown_origin(crowded, "file"))
    for report in (
        fine,
        _report(None),
        replace(crowded, machine={**crowded.machine, "threads": 1}),
    ):
        assert report.crowded_cases == ()
        assert warnings(report) == []
    assert neighbours(fine.cases[0]) == (
        ", others used 0.01 cores, threads did the arithmetic of 1.90 cores"
    )
    assert neighbours(_report(None).cases[0]) == ", others used 0.01 cores"
