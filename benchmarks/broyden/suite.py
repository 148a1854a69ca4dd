"""Whole Broyden solves, as a suite of the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..run import Run, Say, Settings
from ..suite import Suite
from .broyden_report import BroydenReport, CaseResult
from .cases import CASES, GPU_CASES, GPU_QUICK_CASES, QUICK_CASES, Case, parse_case
from .providers import PROVIDERS

if TYPE_CHECKING:
    from .harness import BroydenRun


class BroydenSuite(Suite):
    """Whole Broyden solves of a cheap map against torchdeq and plain PyTorch."""

    name = "broyden"
    summary = "whole Broyden solves of a cheap map, against torchdeq and plain PyTorch"
    case_format = "BATCHxDIMxSTEPS"
    options = frozenset({"memory", "regimes"})
    providers = PROVIDERS
    report_type = BroydenReport
    schema = 3

    def cases(self, device: str, *, quick: bool = False) -> Sequence[Case]:
        if device == "cuda":
            return GPU_QUICK_CASES if quick else GPU_CASES
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> Case:
        return parse_case(text)

    def facts(self, settings: Settings) -> dict[str, Any]:
        return {"ceiling": settings.device.ceiling}

    def begin(self, run: Run) -> BroydenRun:
        from .harness import BroydenRun

        return BroydenRun.of(run)

    def run_case(self, case: Case, run: BroydenRun, say: Say) -> CaseResult:
        from .harness import run_case

        return run_case(case, run, say)

    def finish(self, report: BroydenReport, run: BroydenRun) -> BroydenReport:
        from .harness import measure_memory

        if run.memory_case is None:
            return report
        return replace(report, memory=measure_memory(run.memory_case, run, run.say))

    def format_table(self, report: BroydenReport) -> str:
        from .broyden_text import format_table

        return format_table(report)

    def format_markdown(self, report: BroydenReport, source: str) -> str:
        from .broyden_text import format_markdown

        return format_markdown(report, source)

    def save_plot(self, report: BroydenReport, path: Path) -> None:
        from .plot import save_plot

        save_plot(report, path)
