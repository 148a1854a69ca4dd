"""A whole small run: rows, JSON, table, Markdown, chart."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.broyden import plain_pytorch
from benchmarks.broyden.cases import Case
from benchmarks.broyden.plot import save_plot
from benchmarks.broyden.providers import SolveProvider
from benchmarks.broyden.solve_report import SolveReport
from benchmarks.broyden.solve_text import format_markdown, format_table
from benchmarks.broyden.suite import BroydenSuite
from benchmarks.provider import OURS, ProviderAbsentError
from benchmarks.stored import save_report
from benchmarks.suites import load_report
from python_tests.benchmarks.broyden.measured import measured

if TYPE_CHECKING:
    from benchmarks.broyden.providers import Solve

CASE = Case(2, 300, 8)


def _load_absent(device: str) -> "Solve":
    raise ProviderAbsentError("not installed: pip install nothing")


def _load_wrong(device: str) -> "Solve":
    return lambda f, z0, steps: plain_pytorch.solve_rearranged(f, z0, steps) * 1.01


# Stand-ins keep this independent of what is installed: the first plays the part of ours.
PROVIDERS = (
    SolveProvider(OURS, "stand-in", lambda device: plain_pytorch.solve_rearranged),
    SolveProvider("wrong", "returns other iterates", _load_wrong),
    SolveProvider("missing", "is not there", _load_absent),
)


@pytest.fixture(scope="module")
def report() -> SolveReport:
    return measured([CASE], PROVIDERS, dtype="float64", rounds=2)


def test_rows_say_what_was_done(report: SolveReport) -> None:
    timed, refused, absent = report.cases[0].rows
    assert (timed.status, refused.status, absent.status) == ("timed", "refused", "absent")
    assert timed.evaluations == refused.evaluations == 9
    assert timed.milliseconds is not None
    assert len(timed.milliseconds.samples) == 2
    assert timed.time_over_ours is not None
    assert timed.time_over_ours.samples == (1.0, 1.0)
    assert timed.floor_bytes == CASE.floor_bytes(8)
    assert timed.gigabytes_per_second == pytest.approx(
        timed.floor_bytes / timed.milliseconds.median / 1e6
    )
    ceiling = report.cases[0].ceiling_gigabytes_per_second.median
    assert timed.gigabytes_per_second is not None
    assert timed.floor_share == pytest.approx(timed.gigabytes_per_second / ceiling)
    assert refused.milliseconds is None
    assert "iterates differ" in (refused.reason or "")
    assert absent.reason == "not installed: pip install nothing"
    assert report.refusals == (f"{CASE.name}: wrong {refused.reason}",)


def test_json_has_the_documented_fields(report: SolveReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    save_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["schema"] == BroydenSuite.schema
    assert set(data) == {
        *("suite", "schema", "date", "commit", "ceiling", "machine", "versions", "dtype", "rounds"),
        *("providers", "cases", "memory", "tests"),
    }
    assert data["ceiling"] == "triad"
    assert {"device", "cpu", "threads"} <= set(data["machine"])
    assert set(data["versions"]) == {
        *("deq_kernels", "torch", "torchdeq", "jaxopt", "jax", "scipy", "python"),
    }
    assert load_report(path) == report


def test_json_of_a_provider_that_returns_nan_is_strict(tmp_path: Path) -> None:
    def load(device: str) -> "Solve":
        return lambda f, z0, steps: plain_pytorch.solve_rearranged(f, z0, steps) * float("nan")

    provider = SolveProvider("nan", "returns no numbers", load)
    report = measured([CASE], [provider], rounds=1)
    row = report.cases[0].rows[0]
    assert (row.status, row.iterate_difference, row.residual_ratio) == ("refused", None, None)
    save_report(report, tmp_path / "report.json")
    assert "NaN" not in (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "nan: refused: iterates differ by nan" in format_table(report)


def test_json_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"suite": "broyden", "schema": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"broyden has schema 3, but .* has 0; measure again"):
        load_report(path)


def test_json_with_an_unknown_field_is_refused(report: SolveReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["cases"][0]["rows"][0]["speed"] = 1
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\[0\] has unknown fields \['speed'\]"):
        load_report(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("machine"), "the report lacks machine; it is damaged"),
        (lambda data: data["cases"][0].pop("rows"), r"the report: cases\[0\] lacks rows"),
        (lambda data: data.update(cases=3), "the report: cases must be tuple.* but got 3"),
        (lambda data: data.update(rounds="2"), "the report: rounds must be int, but got '2'"),
        (lambda data: data.update(rounds=None), "the report: rounds must be int, but got None"),
        (lambda data: data.update(providers=[]), r"providers must be dict.* but got \[\]"),
        (lambda data: data["machine"].pop("cpu"), "the report: machine lacks cpu; it is damaged"),
        (lambda data: data["machine"].update(device="tpu"), "device cpu or cuda, but got 'tpu'"),
        (lambda data: data["machine"].update(device="cuda"), "compute_capability, driver, gpu, mu"),
        (lambda data: data.update(ceiling="roof"), "ceiling must be .* but got 'roof'"),
        (lambda data: data.update(tests="red"), "tests must be .* but got 'red'"),
        (lambda data: data["cases"][0]["rows"].pop(), "must have a row for each provider, but got"),
        (lambda data: data["cases"].append(3), r"cases\[1\] must be the fields of a CaseResult"),
        (lambda data: data["cases"][0]["rows"][0].update(status="lost"), "but got 'lost'"),
    ],
)
def test_damaged_json_is_refused(
    damage: Callable[[dict[str, Any]], object], message: str, report: SolveReport, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    save_report(report, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    damage(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_report(path)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"a benchmark report is a JSON object, but .* holds another value"
    ):
        load_report(path)


def test_table_shows_every_provider(report: SolveReport) -> None:
    table = format_table(report)
    assert f"{CASE.name} float64" in table
    assert "missing: absent: not installed: pip install nothing" in table
    assert "wrong: refused: iterates differ" in table
    assert "refused, and therefore not timed:" in table
    lines = table.splitlines()
    header = next(line for line in lines if line.startswith("  provider"))
    row = next(line for line in lines if line.startswith("  ours"))
    assert len(header) == len(row)


def test_markdown_has_a_column_per_provider_and_names_its_source(report: SolveReport) -> None:
    text = format_markdown(report, "benchmarks/results/x.json")
    header, rule, row = text.splitlines()[:3]
    assert header.count("|") == rule.count("|") == row.count("|") == len(PROVIDERS) + 3
    assert row.split("|")[3:5] == [" refused ", " absent "]
    assert "[benchmarks/results/x.json](benchmarks/results/x.json)" in text


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        measured([CASE], PROVIDERS, dtype="float16")
    with pytest.raises(ValueError, match="at least one case"):
        measured([], PROVIDERS)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        measured([CASE], PROVIDERS, rounds=0)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        measured([CASE], PROVIDERS, threads=0)
    with pytest.raises(ValueError, match="every provider is measured once, but got ours, wrong, "):
        measured([CASE], [*PROVIDERS, PROVIDERS[0]])


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="charts need matplotlib")
def test_chart_is_written(report: SolveReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "chart.png"
    save_plot(report, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_disturbed_cases_are_pointed_out(report: SolveReport) -> None:
    quiet, busy = (
        replace(report, cases=(replace(report.cases[0], other_load_cores=cores),))
        for cores in (0.01, 0.9)
    )
    assert quiet.disturbed_cases == ()
    assert busy.disturbed_cases == (CASE.name,)
    assert "do not trust these times" in format_table(busy)
    assert "do not trust these times" not in format_table(quiet)
    assert CASE.name in format_markdown(busy, "x.json")
    assert CASE.name not in format_markdown(quiet, "x.json")
