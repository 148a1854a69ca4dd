"""Structured cells, as a suite of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..provider import Provider
from ..suite import Settings, Suite
from .cases import CASES, QUICK_CASES, CellCase, parse_case
from .providers import PROVIDERS, Bind
from .report import NAME, CellReport, read_report


class CellSuite(Suite):
    """Whole solves of graph cells and their adjoints against IGNN's loop and plain PyTorch."""

    name = NAME
    summary = "graph cells and their adjoints solved to 3e-6, against IGNN's loop and plain PyTorch"
    case_format = "GRAPHSxNODESxFEATURES[-chains]"
    providers = PROVIDERS

    def cases(self, device: str, *, quick: bool = False) -> Sequence[CellCase]:
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> CellCase:
        return parse_case(text)

    def measure(
        self, cases: Sequence[CellCase], providers: Sequence[Provider[Bind]], settings: Settings
    ) -> CellReport:
        from .harness import run_benchmark

        return run_benchmark(cases, providers, settings)

    def read(self, data: Mapping[str, Any], path: Path) -> CellReport:
        return read_report(data, path)

    def format_table(self, report: CellReport) -> str:
        from .table import format_table

        return format_table(report)

    def format_markdown(self, report: CellReport, source: str) -> str:
        from .table import format_markdown

        return format_markdown(report, source)

    def save_plot(self, report: CellReport, path: Path) -> None:
        from .plot import save_plot

        save_plot(report, path)
