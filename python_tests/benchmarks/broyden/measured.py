"""A run of the suite on given cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.broyden.cases import Case
from benchmarks.broyden.providers import SolveProvider
from benchmarks.broyden.solve_report import SolveReport
from benchmarks.broyden.suite import BroydenSuite
from benchmarks.run import Settings, measure


def measured(
    cases: Sequence[Case], providers: Sequence[SolveProvider], **settings: Any
) -> SolveReport:
    """The report of a run with these `Settings`."""
    report = measure(BroydenSuite(), cases, providers, Settings(**settings))
    assert isinstance(report, SolveReport)
    return report
