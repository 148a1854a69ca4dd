"""Recorded steps, with a device that records by remembering what to run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.broyden import plain_pytorch
from benchmarks.broyden.captured import capture_step, variants_of
from benchmarks.broyden.cases import Case
from benchmarks.broyden.checks import make_anchor
from benchmarks.broyden.plot import save_plot
from benchmarks.broyden.providers import SolveProvider
from benchmarks.broyden.solve_report import SolveReport
from benchmarks.broyden.solve_text import format_markdown, format_table
from benchmarks.cpu import Cpu
from benchmarks.provider import OURS
from benchmarks.stored import save_report
from benchmarks.suites import load_report
from python_tests.benchmarks.broyden.measured import measured

CASE = Case(3, 300, 8)
PLAIN = SolveProvider("plain", "no step of its own", lambda device: plain_pytorch.solve_rearranged)
STAND_IN = replace(PLAIN, name=OURS, backend="reference", has_step=True)
ROUNDED = replace(STAND_IN, name="ours-bf16", history_itemsize=2)


class RecordingCpu(Cpu):
    """Replays by running again, and lets a test look at or spoil what it recorded."""

    def __init__(self) -> None:
        self.recorded: list[Callable[[], None]] = []

    def capture(self, run: Callable[[], None]) -> Any:
        self.recorded.append(run)
        return run

    def device_clock(self, call: Callable[[], object], repeats: int) -> float:
        # The map's recording comes first and takes 3 ms, the others 3 + 8 steps of 250 us.
        if call not in self.recorded:
            return super().device_clock(call, repeats)
        return 3e-3 if call == self.recorded[0] else 5e-3


@contextmanager
def _no_regime(name: str) -> Iterator[None]:
    yield


def test_steps_are_those_of_the_providers_and_of_ours_in_each_regime() -> None:
    providers = [STAND_IN, PLAIN, ROUNDED]
    assert [v.name for v in variants_of(providers, None)] == ["ours", "ours-bf16"]
    forced: list[str] = []

    @contextmanager
    def force(name: str) -> Iterator[None]:
        forced.append(name)
        yield
        forced.append("freed")

    variants = variants_of(providers, force)
    assert [v.name for v in variants][2:] == ["ours-block", "ours-cluster", "ours-grid"]
    assert {v.provider for v in variants[2:]} == {STAND_IN}
    for variant in variants:
        with variant.regime():
            pass
    assert forced == ["block", "freed", "cluster", "freed", "grid", "freed"]
    assert variants_of([PLAIN], force) == ()


@pytest.mark.parametrize("provider", [STAND_IN, ROUNDED], ids=lambda provider: provider.name)
def test_a_replay_is_a_whole_solve_however_often_it_runs(provider: SolveProvider) -> None:
    anchor = make_anchor(CASE, dtype=torch.float32)
    device = RecordingCpu()
    variant = variants_of([provider], None)[0]
    captured = capture_step(variant, CASE, anchor, device, dtype=torch.float32)
    assert captured.work.refusal is None
    assert captured.replay is not None
    recorded: Any = device.recorded[0]  # a bound method, whose self is the solve
    first = recorded.__self__.best_z.clone()
    captured.replay()
    assert torch.equal(first, recorded.__self__.best_z)


def test_a_recording_that_does_nothing_when_replayed_is_refused() -> None:
    class Forgetful(RecordingCpu):
        def capture(self, run: Callable[[], None]) -> Any:
            run()
            return lambda: None

    anchor = make_anchor(CASE, dtype=torch.float32)
    variant = variants_of([STAND_IN], None)[0]
    captured = capture_step(variant, CASE, anchor, Forgetful(), dtype=torch.float32)
    assert captured.replay is None
    assert "iterates differ by nan" in (captured.work.refusal or "")


def test_a_recording_that_fails_is_refused_with_the_error() -> None:
    class Failing(RecordingCpu):
        def capture(self, run: Callable[[], None]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    anchor = make_anchor(CASE, dtype=torch.float32)
    variant = variants_of([STAND_IN], None)[0]
    captured = capture_step(variant, CASE, anchor, Failing(), dtype=torch.float32)
    assert captured.work.refusal == (
        "failed: RuntimeError: operation not permitted when stream is capturing"
    )


@pytest.fixture(scope="module")
def report() -> SolveReport:
    return measured(
        [CASE],
        [STAND_IN, PLAIN, ROUNDED],
        device=RecordingCpu(),
        rounds=2,
        force_regime=_no_regime,
    )


def test_the_map_is_taken_off_and_the_rest_shared_by_the_steps(report: SolveReport) -> None:
    rows = {row.name: row for row in report.cases[0].steps_recorded}
    assert list(rows) == ["ours", "ours-bf16", "ours-block", "ours-cluster", "ours-grid"]
    step = rows["ours"]
    assert step.microseconds is not None
    assert step.microseconds.samples == pytest.approx((250.0, 250.0))
    assert step.floor_bytes == CASE.floor_bytes(4)
    assert step.gigabytes_per_second == pytest.approx(CASE.floor_bytes(4) / 2e-3 / 1e9)
    ceiling = report.cases[0].ceiling_gigabytes_per_second.median
    assert step.gigabytes_per_second is not None
    assert step.floor_share == pytest.approx(step.gigabytes_per_second / ceiling)
    assert rows["ours-bf16"].floor_bytes == CASE.floor_bytes(4, 2)
    # A backend is entered while recording, and the replays take part in the rounds of the solves.
    assert {row.provider for row in report.cases[0].rows} == {"ours", "plain", "ours-bf16"}


def test_no_faster_replay_is_taken_for_a_time() -> None:
    class Same(RecordingCpu):
        def device_clock(self, call: Callable[[], object], repeats: int) -> float:
            return 3e-3

    report = measured([CASE], [STAND_IN], device=Same(), rounds=1)
    row = report.cases[0].steps_recorded[0]
    assert (row.status, row.microseconds) == ("refused", None)
    assert report.refusals == (f"{CASE.name}: step of ours {row.reason}",)
    assert f"ours: refused: {row.reason}" in format_table(report)
    assert "| 3 × 300, 8 | refused |" in format_markdown(report, "x.json")


def test_the_cpu_records_nothing() -> None:
    report = measured([CASE], [STAND_IN], rounds=1)
    assert report.cases[0].steps_recorded == ()
    assert "recorded" not in format_table(report)
    assert "CUDA graph" not in format_markdown(report, "x.json")


def test_recorded_steps_are_shown_and_survive_the_json(report: SolveReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save_report(report, path)
    assert load_report(path) == report
    table = format_table(report)
    header = next(line for line in table.splitlines() if line.startswith("  recorded step"))
    assert header.split()[2:] == ["us", "quartiles", "GB/s", "of", "triad"]
    assert any(line.split()[:2] == ["ours-grid", "250"] for line in table.splitlines())
    markdown = format_markdown(report, "x.json")
    names = "ours | ours-bf16 | ours-block | ours-cluster | ours-grid"
    assert f"| batch × dim, steps | {names} |\n" in markdown
    assert "| 3 × 300, 8 | 250 (" in markdown


def _on_gpu(report: SolveReport) -> SolveReport:
    machine = {
        **report.machine,
        "device": "cuda",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "multiprocessors": 132,
        "driver": "580.1",
    }
    return replace(report, machine=machine, ceiling="copy")


def test_a_report_from_a_gpu_names_it(report: SolveReport, tmp_path: Path) -> None:
    on_gpu = _on_gpu(report)
    path = tmp_path / "report.json"
    save_report(on_gpu, path)
    assert load_report(path) == on_gpu
    name = "NVIDIA H200 (compute capability 9.0, 132 multiprocessors, driver 580.1)"
    for text in (format_table(on_gpu), format_markdown(on_gpu, "x.json")):
        assert name in text
        assert "triad" not in text
        assert "L2 cache" in text
    assert "copy " in format_table(on_gpu)
    assert "| ours: share of copy |" in format_markdown(on_gpu, "x.json")


def test_a_host_that_is_half_busy_disturbs_no_gpu(report: SolveReport) -> None:
    half_busy = replace(report, cases=(replace(report.cases[0], other_load_cores=0.5),))
    assert half_busy.disturbed_cases == (CASE.name,)
    assert _on_gpu(half_busy).disturbed_cases == ()
    busy = replace(report, cases=(replace(report.cases[0], other_load_cores=2.0),))
    assert _on_gpu(busy).disturbed_cases == (CASE.name,)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="charts need matplotlib")
def test_a_chart_of_a_gpu_is_written(report: SolveReport, tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    save_plot(replace(_on_gpu(report), tests="failed"), path)
    assert path.read_bytes().startswith(b"\x89PNG")
