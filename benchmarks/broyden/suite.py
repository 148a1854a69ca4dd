"""Whole solves, by Broyden's method or another, as suites of the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..run import Run, Say, Settings
from ..suite import Presentation, Suite
from .cases import CASES, GPU_CASES, GPU_QUICK_CASES, QUICK_CASES, Case, parse_case
from .plot import save_plot
from .providers import PROVIDERS
from .solve_report import CaseResult, SolveReport
from .solve_text import format_markdown, format_table

if TYPE_CHECKING:
    from .harness import SolveRun


class SolveSuite(Suite):
    """Whole solves of a cheap map by one method: what such suites have in common."""

    case_format = "BATCHxDIMxSTEPS"
    schema = 3
    shown_as = Presentation(table=format_table, markdown=format_markdown, save_plot=save_plot)

    def facts(self, settings: Settings) -> dict[str, Any]:
        return {"ceiling": settings.device.ceiling}

    def begin(self, run: Run) -> SolveRun:
        from .harness import SolveRun

        return SolveRun.of(run)

    def run_case(self, case: Case, run: SolveRun, say: Say) -> CaseResult:
        from .harness import run_case

        return run_case(case, run, say)

    def finish(self, report: SolveReport, run: SolveRun) -> SolveReport:
        from .harness import measure_memory

        if run.memory_case is None:
            return report
        return replace(report, memory=measure_memory(run.memory_case, run, run.say))


class BroydenSuite(SolveSuite):
    """Whole Broyden solves of a cheap map against torchdeq and plain PyTorch."""

    name = "broyden"
    summary = "whole Broyden solves of a cheap map, against torchdeq and plain PyTorch"
    options = frozenset({"memory", "regimes"})
    providers = PROVIDERS
    report_type = SolveReport

    def cases(self, device: str, *, quick: bool = False) -> Sequence[Case]:
        if device == "cuda":
            return GPU_QUICK_CASES if quick else GPU_CASES
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> Case:
        return parse_case(text, Case)
