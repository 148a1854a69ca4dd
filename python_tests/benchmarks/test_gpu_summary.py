"""The verdict and the targets of a GPU run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import targets
from benchmarks.gpu.findings import count_tests, find_complaints, find_refusals, is_correct
from benchmarks.gpu.job import StageResult, Status
from benchmarks.gpu.summary import format_summary, read_report
from benchmarks.gpu.targets import check_broyden_targets, check_cell_targets


def _stages(**statuses: Status) -> list[StageResult]:
    return [StageResult(name, status, 1, "") for name, status in statuses.items()]


@pytest.mark.parametrize(
    ("statuses", "correct"),
    [
        ({"build": "passed", "tests": "passed"}, True),
        ({"installed": "passed", "tests": "passed", "benchmark": "failed"}, True),
        ({"build": "passed", "tests": "passed", "memcheck": "skipped"}, True),
        ({"build": "passed", "tests": "passed", "racecheck": "timed out"}, True),
        ({"build": "passed", "tests": "passed", "racecheck": "failed"}, False),
        ({"build": "passed", "tests": "timed out"}, False),
        ({"build": "passed", "tests": "skipped"}, False),
        ({"build": "timed out", "tests": "passed"}, False),
        ({"build": "passed"}, False),
        ({}, False),
    ],
)
def test_what_counts_as_correct(statuses: dict[str, Status], correct: bool) -> None:
    assert is_correct(_stages(**statuses), [], []) is correct
    assert is_correct(_stages(**statuses), ["torchdeq on x: other"], []) is correct
    assert not is_correct(_stages(**statuses), ["ours on x: other"], [])
    assert not is_correct(_stages(**statuses), ["step of ours-grid on x: o"], [])
    assert not is_correct(_stages(**statuses), [], ["Invalid read"])


def _row(provider: str, ratio: float) -> dict[str, Any]:
    return {"provider": provider, "status": "timed", "time_over_ours": {"median": ratio}}


def _step(name: str, microseconds: float, share: float) -> dict[str, Any]:
    timed = {"name": name, "status": "timed", "floor_share": share}
    return {**timed, "microseconds": {"median": microseconds}}


def test_targets_are_held_against_what_was_measured() -> None:
    report = {
        "cases": [
            {
                "name": "32x61440x18",
                "rows": [_row("torchdeq", 12.0), _row("plain", 4.0)],
                "steps_recorded": [_step("ours", 100.0, 0.9), _step("ours-triton", 149.0, 0.6)],
            },
            {
                "name": "1x1000x20",
                "rows": [],
                "steps_recorded": [_step("ours", 13.0, 0.01)],
            },
        ],
        "memory": {
            "case": "32x61440x18",
            "rows": [
                {"provider": "ours", "peak_bytes": 50},
                {"provider": "torchdeq", "peak_bytes": 100},
            ],
        },
    }
    found = {target["what"]: target for target in check_broyden_targets(report)}
    met = {what: target["met"] for what, target in found.items()}
    assert met.pop("32x61440x18: time of torchdeq over ours") is True
    assert met.pop("32x61440x18: time of plain over ours") is False
    assert met.pop("32x61440x18: recorded step of ours, share of the copy") is True
    assert met.pop("32x61440x18: recorded step of ours-triton over ours") is True
    assert met.pop("1x1000x20: recorded step of ours, microseconds") is False
    assert met.pop("32x61440x18: peak memory of ours over torchdeq") is True
    assert set(met.values()) == {None}
    assert found["32x61440x18: time of plain over ours"]["wanted"] == ">= 5"


def test_targets_of_structured_cells() -> None:
    def case(ours: int | None, *ratios: float) -> dict[str, Any]:
        rows = [
            {"provider": "ours", "time_over_ours": {"median": 1.0}, "own_launches": ours},
            {"provider": "plain-refused", "time_over_ours": None},
            {"provider": "ignn-style", "time_over_ours": {"median": 2.0}},
        ]
        plain = [
            {"provider": f"plain-{ratio}", "time_over_ours": {"median": ratio}} for ratio in ratios
        ]
        return {"name": "128x40x64", "solve": [*rows, *plain], "adjoint": rows}

    def verdicts(*cases: dict[str, Any]) -> list[tuple[float | None, bool | None]]:
        found = check_cell_targets({"cases": list(cases)})
        return [(target["measured"], target["met"]) for target in found]

    assert verdicts(case(1, 30.0, 12.0)) == [(12.0, True), (1, True), (None, None), (1, True)]
    assert verdicts(case(4, 9.0)) == [(9.0, False), (4, False), (None, None), (4, False)]
    assert verdicts(case(None)) == [(None, None)] * 4
    assert verdicts() == [(None, None)] * 4


def test_refusals_of_every_suite_are_found() -> None:
    refused = {"provider": "ours", "status": "refused", "reason": "residual"}
    timed = {"provider": "ours", "status": "timed", "reason": None}
    cells = {"cases": [{"name": "1x2x3", "solve": [timed], "adjoint": [refused]}]}
    assert list(find_refusals(cells)) == ["ours on 1x2x3 adjoint: residual"]
    train = {"cases": [{"name": "mdeq/digits/jfb", "rows": [timed, refused]}]}
    assert list(find_refusals(train)) == ["ours on mdeq/digits/jfb: residual"]


def test_nothing_measured_meets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = [*check_broyden_targets({}), *check_cell_targets({})]
    assert {target["met"] for target in found} == {None}
    summary = {
        "correct": False,
        "device": "cuda",
        "stages": [asdict(stage) for stage in _stages(build="failed")],
        "tests": None,
        "sanitizer": [],
        "refusals": [],
        "targets": found,
    }
    text = format_summary(summary)
    assert text.count("not measured") == len(found)
    assert text.endswith("NOT shown to be correct")


def test_the_targets_are_about_cases_that_are_measured() -> None:
    from benchmarks.broyden.cases import GPU_CASES
    from benchmarks.suites import SUITES

    assert {*targets.LARGE, *targets.SMALL} <= {case.name for case in GPU_CASES}
    for quick in (False, True):
        cells = SUITES["cells"].cases("cuda", quick=quick)
        assert targets.GRAPHS in {case.name for case in cells}


def test_tests_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    assert count_tests(path) is None
    path.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>',
        encoding="utf-8",
    )
    assert count_tests(path) == {"passed": 3, "failed": 3, "skipped": 3}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("========= Invalid __global__ read of size 4 bytes", True),
        ("========= Error: Race reported between Write access at f() and Read access at g()", True),
        ("========= Barrier error detected. Divergent thread(s) in warp", True),
        ("========= Error: Device not supported. Please refer to the documentation", False),
        ("========= ERROR SUMMARY: 0 errors", False),
        ("=========     by thread (0,0,0) in block (0,0,0)", False),
        ("== memcheck ended with status 0", False),
    ],
)
def test_complaints_are_told_from_the_rest(line: str, found: bool, tmp_path: Path) -> None:
    path = tmp_path / "sanitizer.txt"
    path.write_text(f"noise\n{line}\n{line}\n", encoding="utf-8")
    assert len(find_complaints(path)) == found


def test_a_report_is_read_as_far_as_there_is_one(tmp_path: Path) -> None:
    assert read_report(tmp_path / "bench.json") == {}
    (tmp_path / "bench.json").write_text(json.dumps({"cases": []}), encoding="utf-8")
    assert read_report(tmp_path / "bench.json") == {"cases": []}
