"""A run of the suite on given cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.broyden.broyden_report import BroydenReport
from benchmarks.broyden.cases import Case
from benchmarks.broyden.providers import BroydenProvider
from benchmarks.broyden.suite import BroydenSuite
from benchmarks.run import Settings, measure


def measured(
    cases: Sequence[Case], providers: Sequence[BroydenProvider], **settings: Any
) -> BroydenReport:
    """The report of a run with these `Settings`."""
    report = measure(BroydenSuite(), cases, providers, Settings(**settings))
    assert isinstance(report, BroydenReport)
    return report
