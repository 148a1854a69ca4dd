"""Whole Broyden solves, as a suite of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..suite import Settings, Suite
from .cases import CASES, GPU_CASES, GPU_QUICK_CASES, QUICK_CASES, Case, parse_case
from .providers import PROVIDERS, BroydenProvider
from .report import NAME, BroydenReport, read_report


class BroydenSuite(Suite):
    """Whole Broyden solves of a cheap map against torchdeq and plain PyTorch."""

    name = NAME
    summary = "whole Broyden solves of a cheap map, against torchdeq and plain PyTorch"
    case_format = "BATCHxDIMxSTEPS"
    options = frozenset({"memory", "regimes"})
    providers = PROVIDERS

    def cases(self, device: str, *, quick: bool = False) -> Sequence[Case]:
        if device == "cuda":
            return GPU_QUICK_CASES if quick else GPU_CASES
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> Case:
        return parse_case(text)

    def measure(
        self, cases: Sequence[Case], providers: Sequence[BroydenProvider], settings: Settings
    ) -> BroydenReport:
        from .harness import run_benchmark

        return run_benchmark(
            cases,
            providers,
            device=settings.device,
            dtype=settings.dtype,
            rounds=settings.rounds,
            threads=settings.threads,
            memory_case=None if settings.memory is None else parse_case(settings.memory),
            force_regime=settings.force_regime,
            commit=settings.commit,
            tests=settings.tests,
            save=settings.save,
            say=settings.say,
        )

    def read(self, data: Mapping[str, Any], path: Path) -> BroydenReport:
        return read_report(data, path)

    def format_table(self, report: BroydenReport) -> str:
        from .table import format_table

        return format_table(report)

    def format_markdown(self, report: BroydenReport, source: str) -> str:
        from .table import format_markdown

        return format_markdown(report, source)

    def save_plot(self, report: BroydenReport, path: Path) -> None:
        from .plot import save_plot

        save_plot(report, path)
