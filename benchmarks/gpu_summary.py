"""Put together what the stages of gpu.sh found: summary.json, a short table, and a verdict.

Needs nothing but Python, so that there is a summary whatever went wrong before.
"""

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGE = ("32x61440x18", "32x188160x26", "14x105000x30")
SMALL = ("1x1000x20", "32x1000x20")
# The ordinary batch of graphs.
GRAPHS = "128x40x64"
BENCHMARKS = ("bench", "cells", "train")
# One of the first two is run, and it and the third must pass.
NEEDED = ("build", "installed", "tests")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# One that ran out of time found nothing so far; what it found stands in its log.
HARMLESS = ("passed", "skipped", "timed out")
COMPLAINT = re.compile(
    r"=+ +((Invalid|Misaligned|Out-of-range|Uninitialized|Barrier error|Divergent|Potential"
    r"|(Error|Warning): Race).*)"
)
OURS = ("ours", "step of ours")


def main() -> int:
    """Write OUT/summary.json; return 0 if everything about correctness passed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder with the results")
    parser.add_argument(
        "--work", type=Path, required=True, help="where stages.tsv and tests.xml are"
    )
    parser.add_argument("--device", required=True, help="what the stages ran on")
    parser.add_argument("--seconds", type=int, required=True, help="duration of the whole run")
    args = parser.parse_args()
    stages = read_stages(args.work / "stages.tsv")
    reports = {name: read_report(args.out / f"{name}.json") for name in BENCHMARKS}
    # What all of them state, from whichever was measured.
    report = next((found for found in reports.values() if found), {})
    refusals = [line for found in reports.values() for line in find_refusals(found)]
    targets = [*check_targets(reports["bench"]), *check_cell_targets(reports["cells"])]
    complaints = find_complaints(args.out / "sanitizer.txt")
    summary = {
        "correct": is_correct(stages, refusals, complaints),
        "device": args.device,
        "machine": report.get("machine"),
        "commit": report.get("commit"),
        "seconds": args.seconds,
        "stages": stages,
        "tests": count_tests(args.work / "tests.xml"),
        "sanitizer": complaints,
        "refusals": refusals,
        "targets": targets if args.device == "cuda" else [],
    }
    text = json.dumps(summary, indent=1) + "\n"
    (args.out / "summary.json").write_text(text, encoding="utf-8")
    print(format_summary(summary))
    return 0 if summary["correct"] else 1


def read_stages(path: Path) -> list[dict[str, Any]]:
    """The lines that gpu.sh recorded: name, status, seconds and detail, separated by tabs."""
    if not path.exists():
        return []
    stages = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, status, seconds, detail = line.split("\t")
        stages.append({"name": name, "status": status, "seconds": int(seconds), "detail": detail})
    return stages


def read_report(path: Path) -> dict[str, Any]:
    """A benchmark's report, also one of a run cut short; empty where there is none."""
    if not path.exists():
        return {}
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def count_tests(path: Path) -> dict[str, int] | None:
    """How many tests passed, failed and were skipped; None where the run did not finish."""
    if not path.exists():
        return None
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    )
    passed = total - failures - errors - skipped
    return {"passed": passed, "failed": failures + errors, "skipped": skipped}


def find_refusals(report: dict[str, Any]) -> Iterator[str]:
    """One line for everything that a benchmark refused to time."""
    for case in report.get("cases", []):
        for equation in ("rows", "solve", "adjoint"):
            where = case["name"] if equation == "rows" else f"{case['name']} {equation}"
            for row in case.get(equation, []):
                if row["status"] == "refused":
                    yield f"{row['provider']} on {where}: {row['reason']}"
        for row in case.get("steps_recorded", []):
            if row["status"] == "refused":
                yield f"step of {row['name']} on {case['name']}: {row['reason']}"


def find_complaints(path: Path) -> list[str]:
    """What compute-sanitizer found, each kind once."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    matches = (COMPLAINT.match(line) for line in lines)
    return list(dict.fromkeys(match[1] for match in matches if match))


def is_correct(stages: list[dict[str, Any]], refusals: list[str], complaints: list[str]) -> bool:
    """Whether nothing spoke against the library and the tests spoke for it."""
    statuses = {stage["name"]: stage["status"] for stage in stages}
    needed = [statuses[name] for name in NEEDED if name in statuses]
    sanitizers = [statuses[name] for name in SANITIZERS if name in statuses]
    # That a benchmark took too long, or refused another package, says nothing about this one.
    return (
        needed == ["passed", "passed"]
        and all(status in HARMLESS for status in sanitizers)
        and not complaints
        and not any(line.startswith(OURS) for line in refusals)
    )


def check_targets(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What Broyden's kernels are meant to reach on a GPU, against what was measured."""
    cases = {case["name"]: case for case in report.get("cases", [])}

    def median(case: str, provider: str, field: str) -> float | None:
        for row in cases.get(case, {}).get("rows", []):
            if row["provider"] == provider and row[field] is not None:
                value: float = row[field]["median"]
                return value
        return None

    def step(case: str, name: str, field: str) -> float | None:
        for row in cases.get(case, {}).get("steps_recorded", []):
            if row["name"] == name and row[field] is not None:
                value = row[field]
                return value["median"] if isinstance(value, dict) else value
        return None

    for case in LARGE:
        for peer, factor in (("torchdeq", 10.0), ("plain", 5.0), ("plain-4k", 5.0)):
            measured = median(case, peer, "time_over_ours")
            yield at_least(f"{case}: time of {peer} over ours", factor, measured)
        share = step(case, "ours", "floor_share")
        yield at_least(f"{case}: recorded step of ours, share of the copy", 0.8, share)
        ours, triton = (step(case, name, "microseconds") for name in ("ours", "ours-triton"))
        ratio = triton / ours if ours and triton else None
        yield at_most(f"{case}: recorded step of ours-triton over ours", 1.5, ratio)
    for case in SMALL:
        microseconds = step(case, "ours", "microseconds")
        yield at_most(f"{case}: recorded step of ours, microseconds", 12.0, microseconds)
    memory = report.get("memory") or {}
    peaks = {row["provider"]: row["peak_bytes"] for row in memory.get("rows", [])}
    own_peak, peer_peak = peaks.get("ours"), peaks.get("torchdeq")
    ratio = own_peak / peer_peak if own_peak is not None and peer_peak else None
    yield at_most(f"{memory.get('case')}: peak memory of ours over torchdeq", 0.6, ratio)


def check_cell_targets(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the kernel of structured cells is meant to reach on a GPU, likewise."""
    cases = {case["name"]: case for case in report.get("cases", [])}
    for equation in ("solve", "adjoint"):
        rows = cases.get(GRAPHS, {}).get(equation, [])
        ratios = [
            row["time_over_ours"]["median"]
            for row in rows
            if row["provider"].startswith("plain-") and row["time_over_ours"] is not None
        ]
        what = f"{GRAPHS} {equation}: time of the best plain loop over ours"
        yield at_least(what, 10.0, min(ratios, default=None))
        launches = [row.get("own_launches") for row in rows if row["provider"] == "ours"]
        what = f"{GRAPHS} {equation}: launches of the kernel of ours"
        yield at_most(what, 1, launches[0] if launches else None)


def at_least(what: str, wanted: float, measured: float | None) -> dict[str, Any]:
    """A target that is met from `wanted` upwards."""
    met = None if measured is None else measured >= wanted
    return {"what": what, "wanted": f">= {wanted:g}", "measured": measured, "met": met}


def at_most(what: str, wanted: float, measured: float | None) -> dict[str, Any]:
    """A target that is met from `wanted` downwards."""
    met = None if measured is None else measured <= wanted
    return {"what": what, "wanted": f"<= {wanted:g}", "measured": measured, "met": met}


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


if __name__ == "__main__":
    sys.exit(main())
