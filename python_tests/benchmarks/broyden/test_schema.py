"""Reports of the first schema, whose ceiling was always the triad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.broyden.report import SCHEMA
from benchmarks.stored import save_report
from benchmarks.suites import load_report

COMMITTED = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "cpu-float32.json"


@pytest.fixture
def first_schema() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if data["schema"] != 1:
        data["schema"] = 1
        data.pop("ceiling")
        data.pop("tests", None)
        for case in data["cases"]:
            case["triad_gigabytes_per_second"] = case.pop("ceiling_gigabytes_per_second")
            case.pop("steps_recorded", None)
    return data


def test_a_report_of_the_first_schema_loads_and_is_saved_in_the_present_one(
    first_schema: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(first_schema), encoding="utf-8")
    report = load_report(path)
    assert report.schema == SCHEMA
    assert report.ceiling == "triad"
    assert not report.on_gpu
    for case, old in zip(report.cases, first_schema["cases"], strict=True):
        rate = case.ceiling_gigabytes_per_second
        assert list(rate.samples) == old["triad_gigabytes_per_second"]["samples"]
        assert case.steps_recorded == ()
    save_report(report, path)
    assert load_report(path) == report


@pytest.mark.parametrize("cases", [3, [3], None])
def test_a_damaged_report_of_the_first_schema_is_refused(
    cases: object, first_schema: dict[str, Any], tmp_path: Path
) -> None:
    first_schema["cases"] = cases
    path = tmp_path / "old.json"
    path.write_text(json.dumps(first_schema), encoding="utf-8")
    with pytest.raises(ValueError, match="it is damaged"):
        load_report(path)
