"""What tests, compute-sanitizer and benchmarks found, and whether it speaks for the library."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .checks import SANITIZERS
from .job import StageResult

# One of the first two is run, and it and the third must pass.
_NEEDED = ("build", "installed", "tests")
# A tool that ran out of time found nothing so far; what it found stands in its log.
_HARMLESS = ("passed", "skipped", "timed out")
_COMPLAINT = re.compile(
    r"=+ +((Invalid|Misaligned|Out-of-range|Uninitialized|Barrier error|Divergent|Potential"
    r"|(Error|Warning): Race).*)"
)
_OURS = ("ours", "step of ours")


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
    matches = (_COMPLAINT.match(line) for line in lines)
    return list(dict.fromkeys(match[1] for match in matches if match))


def is_correct(
    stages: Sequence[StageResult], refusals: Sequence[str], complaints: Sequence[str]
) -> bool:
    """Whether nothing spoke against the library and the tests spoke for it."""
    statuses = {stage.name: stage.status for stage in stages}
    needed = [statuses[name] for name in _NEEDED if name in statuses]
    sanitizers = [statuses[name] for name in SANITIZERS if name in statuses]
    # That a benchmark took too long, or refused another package, says nothing about this one.
    return (
        needed == ["passed", "passed"]
        and all(status in _HARMLESS for status in sanitizers)
        and not complaints
        and not any(line.startswith(_OURS) for line in refusals)
    )
