"""The result of a run: summary.json, and what is printed of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checks import TESTS_XML
from .findings import count_tests, find_complaints, find_refusals, is_correct
from .job import StageResult
from .measurements import MEASUREMENTS
from .options import Options
from .targets import check_broyden_targets, check_cell_targets


def summarize(options: Options, stages: Sequence[StageResult], *, seconds: int) -> dict[str, Any]:
    """Everything that is known after the last stage.

    Args:
        options: of the run.
        stages: what became of each.
        seconds: that the whole run took.
    """
    reports = {
        measurement.suite: read_report(options.out / f"{measurement.files}.json")
        for measurement in MEASUREMENTS
    }
    # What all of them state, from whichever was measured.
    report = next((found for found in reports.values() if found), {})
    refusals = [line for found in reports.values() for line in find_refusals(found)]
    complaints = find_complaints(options.out / "sanitizer.txt")
    targets = [*check_broyden_targets(reports["broyden"]), *check_cell_targets(reports["cells"])]
    return {
        "correct": is_correct(stages, refusals, complaints),
        "device": options.device,
        "machine": report.get("machine"),
        "commit": report.get("commit"),
        "seconds": seconds,
        "stages": [asdict(stage) for stage in stages],
        "tests": count_tests(TESTS_XML),
        "sanitizer": complaints,
        "refusals": refusals,
        "targets": targets if options.device == "cuda" else [],
    }


def read_report(path: Path) -> dict[str, Any]:
    """A benchmark's report, also one of a run cut short; empty where there is none."""
    if not path.exists():
        return {}
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def format_summary(summary: dict[str, Any]) -> str:
    """What to print at the end of a run."""
    lines = ["", "stages:"]
    for stage in summary["stages"]:
        detail = f"  {stage['detail']}" if stage["detail"] else ""
        lines.append(f"  {stage['name']:<10} {stage['status']:<9} {stage['seconds']:>4} s{detail}")
    if summary["tests"] is not None:
        counts = ", ".join(f"{count} {name}" for name, count in summary["tests"].items())
        lines.append(f"tests: {counts}")
    lines += [f"compute-sanitizer: {line}" for line in summary["sanitizer"]]
    lines += [f"refused: {line}" for line in summary["refusals"]]
    if summary["targets"]:
        lines.append("targets:")
    for target in summary["targets"]:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
        measured = "" if target["measured"] is None else f"{target['measured']:.3g}"
        lines.append(f"  {target['what']:<58} {target['wanted']:>7} {measured:>8}  {verdict}")
    verdict = "correct" if summary["correct"] else "NOT shown to be correct"
    if summary["device"] == "cpu":
        verdict += ", on the CPU alone: a rehearsal says nothing about a GPU"
    lines.append(verdict)
    return "\n".join(lines)
