"""A small run of structured cells: rows, JSON, table, Markdown, chart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks.cells import plain_pytorch
from benchmarks.cells.cases import CellCase
from benchmarks.cells.cell_report import CellReport, best_plain
from benchmarks.cells.cell_text import format_markdown, format_table
from benchmarks.cells.plot import save_plot
from benchmarks.cells.problem import CellProblem, Direction
from benchmarks.cells.providers import Bind
from benchmarks.cells.suite import CellSuite
from benchmarks.device import find_device
from benchmarks.provider import OURS, Provider, ProviderAbsentError
from benchmarks.run import Settings, measure
from benchmarks.stored import save_report
from benchmarks.suites import load_report
from benchmarks.timing import Spread

CASE = CellCase(3, 8, 5)


class _Wrong:
    """Answers that are a little off, of the solve only; the adjoint fails."""

    steps = 1

    def __init__(self, problem: CellProblem, direction: Direction) -> None:
        self._loop = plain_pytorch.csr(problem, direction)
        self._direction = direction

    def __call__(self) -> Tensor:
        if self._direction is Direction.ADJOINT:
            raise RuntimeError("no adjoint\nof this")
        return self._loop() * 1.01


def _load_absent(device: str) -> Bind:
    raise ProviderAbsentError("not installed: pip install nothing")


# Stand-ins keep this independent of what is built: the first plays the part of ours.
PROVIDERS: tuple[Provider[Bind], ...] = (
    Provider(OURS, "stand-in", lambda device: plain_pytorch.csr),
    Provider("plain-bag", "one formulation", lambda device: plain_pytorch.bag),
    Provider("plain-padded", "another", lambda device: plain_pytorch.padded),
    Provider("wrong", "returns other answers", lambda device: _Wrong),
    Provider("missing", "is not there", _load_absent),
)


def _settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "device": find_device("cpu"),
        "dtype": "float64",
        "rounds": 2,
        "threads": None,
        "commit": None,
        "tests": None,
        "save": None,
        "say": lambda line: None,
    }
    return Settings(**{**values, **changes})


@pytest.fixture(scope="module")
def report() -> CellReport:
    return measure(CellSuite(), [CASE], PROVIDERS, _settings())


def test_rows_say_what_was_done(report: CellReport) -> None:
    case = report.cases[0]
    assert (case.graphs, case.features, case.nodes) == (3, 5, 29)
    for rows in case.rows.values():
        ours, plain = rows[:2]
        assert ours.milliseconds is not None
        assert plain.milliseconds is not None
        assert ours.time_over_ours is not None
        assert plain.time_over_ours is not None
        assert ours.time_over_ours.samples == (1.0, 1.0)
        expected = [
            p / o
            for p, o in zip(plain.milliseconds.samples, ours.milliseconds.samples, strict=True)
        ]
        assert plain.time_over_ours.samples == pytest.approx(expected)
        assert rows[4].reason == "not installed: pip install nothing"
    assert case.solve[3].reason is not None
    assert case.solve[3].reason.startswith("residual ")
    assert case.adjoint[3].reason == "failed: RuntimeError: no adjoint"
    assert report.refusals == (
        f"{CASE.name} solve: wrong {case.solve[3].reason}",
        f"{CASE.name} adjoint: wrong failed: RuntimeError: no adjoint",
    )


def test_json_reads_back(report: CellReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    save_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert set(data) == {
        *("suite", "schema", "date", "commit", "machine", "versions", "dtype", "rounds"),
        *("providers", "cases", "tests", "tolerance"),
    }
    assert (data["suite"], data["tolerance"]) == ("cells", 3e-6)
    assert load_report(path) == report


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.update(schema=2), "has schema 1, but .* has 2"),
        (lambda data: data.update(suite="bells"), "one of broyden, .* cells, .* has 'bells'"),
        (lambda data: data.pop("tolerance"), "the report lacks tolerance; it is damaged"),
        (lambda data: data["machine"].pop("cpu"), "the report: machine lacks cpu; it is damaged"),
        (lambda data: data["cases"][0]["adjoint"].pop(), "adjoint must have a row for each provid"),
        (lambda data: data["cases"][0]["solve"][0].update(status="lost"), "but got 'lost'"),
    ],
)
def test_damaged_json_is_refused(
    damage: Callable[[dict[str, Any]], object], message: str, report: CellReport, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    save_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    damage(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_report(path)


def _with_times(report: CellReport, times: dict[str, float]) -> CellReport:
    """The report as if each provider had taken so many milliseconds, always."""

    def constant(value: float) -> Spread:
        return Spread(value, value, value, (value,))

    case = report.cases[0]
    directions = {
        direction.value: tuple(
            replace(
                row,
                milliseconds=constant(times[row.provider]),
                time_over_ours=constant(times[row.provider] / times[OURS]),
            )
            if row.milliseconds
            else row
            for row in rows
        )
        for direction, rows in case.rows.items()
    }
    return replace(report, cases=(replace(case, **directions),))


def test_of_plain_pytorch_the_fastest_counts(report: CellReport) -> None:
    times = {OURS: 2.0, "plain-bag": 9.0, "plain-padded": 8.0}
    timed = _with_times(report, times)
    best = best_plain(timed.cases[0].solve)
    assert best is not None
    assert best.provider == "plain-padded"
    assert best_plain(timed.cases[0].solve[:1]) is None
    header, _, solve, adjoint = format_markdown(timed, "results/x.json").splitlines()[:4]
    assert header == (
        "| graphs × nodes × features |  | ours | best plain PyTorch | wrong | missing |"
    )
    assert solve == "| 3 × 8 × 5 | solve | 2.00 | 8.00 (padded, 4.0×) | refused | absent |"
    assert adjoint == "| 3 × 8 × 5 | adjoint | 2.00 | 8.00 (padded, 4.0×) | refused | absent |"


def test_markdown_names_its_source(report: CellReport) -> None:
    text = format_markdown(report, "benchmarks/results/x.json")
    assert "[benchmarks/results/x.json](benchmarks/results/x.json)" in text
    assert "no entry changes by 3e-06" in text
    failed = format_markdown(replace(report, tests="failed"), "x.json")
    assert "FAILED on this machine" in failed


def test_table_shows_every_provider(report: CellReport) -> None:
    table = format_table(report)
    for direction in Direction:
        assert f"{CASE.name} float64, {direction.value}: 3 graph(s), 29 nodes" in table
    assert "missing: absent: not installed: pip install nothing" in table
    assert "wrong: refused: residual" in table
    assert "refused, and therefore not timed:" in table
    lines = table.splitlines()
    header = next(line for line in lines if line.startswith("  provider"))
    row = next(line for line in lines if line.startswith("  ours"))
    assert len(header) == len(row)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="charts need matplotlib")
def test_launches_are_counted_where_the_device_tells(
    report: CellReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of this library apart, under plain and mangled names."""
    assert {row.launches for row in report.cases[0].solve} == {None}
    assert "launches" not in format_table(report)
    device = find_device("cpu")
    kernels = (
        "void deq::(anonymous namespace)::cell_groups_kernel<float>(deq::CellArguments<float>)",
        "_ZN3deq46_GLOBAL__N__005acc39_8_cells_cu16cell_rows_kernelIfEEv",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<deq_kernels>>",
    )
    monkeypatch.setattr(device, "launches", lambda call: kernels)
    counted = measure(CellSuite(), [CASE], PROVIDERS[:2], _settings(device=device))
    for row in (*counted.cases[0].solve, *counted.cases[0].adjoint):
        assert (row.launches, row.own_launches) == (3, 2)
    table = format_table(counted)
    assert table.count("residual  launches\n") == 2
    assert "launches: kernels that one solve launches" in table


def test_chart_is_written(report: CellReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "chart.png"
    save_plot(report, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        measure(CellSuite(), [], PROVIDERS, _settings())
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        measure(CellSuite(), [CASE], PROVIDERS, _settings(rounds=0))


def test_the_results_so_far_are_saved_after_each_case() -> None:
    saved: list[int] = []
    settings = _settings(rounds=1, save=lambda report: saved.append(len(report.cases)))
    measure(CellSuite(), [CASE, CASE], PROVIDERS[:1], settings)
    assert saved == [1, 2]


def test_the_command_measures_and_renders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cells.json"
    threads = torch.get_num_threads()
    arguments = ["--cases", CASE.name, "--providers", "plain-csr,ignn-style", "--rounds", "2"]
    assert command.main(["cells", *arguments, "--threads", "1", "--json", str(path)]) == 0
    assert torch.get_num_threads() == threads
    captured = capsys.readouterr()
    assert f"{CASE.name} float32, adjoint" in captured.out
    assert "round 2 of 2" in captured.err
    assert command.main(["--render", str(path)]) == 0
    rendered = capsys.readouterr().out
    assert rendered.startswith("| graphs × nodes × features |  | best plain PyTorch | ignn-style |")
    assert command.main(["broyden", "--render", str(path)]) == 2
    assert "is a report of cells, but got broyden" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "8x61440"], "GRAPHSxNODESxFEATURES"),
        (["--providers", "torchdeq"], "unknown provider 'torchdeq'"),
        (["--memory"], "--memory is an option of the suite broyden, but got it with cells"),
        (["--regimes"], "--regimes is an option of the suite broyden, but got it with cells"),
    ],
)
def test_what_belongs_to_another_suite_is_rejected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["cells", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_list_shows_one_suite_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["cells", "--list"]) == 0
    only = capsys.readouterr().out
    assert "128x40x64" in only
    assert "torchdeq:" not in only
    assert command.main(["--list"]) == 0
    assert only in capsys.readouterr().out
