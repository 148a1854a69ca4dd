"""Structured cells, as a suite of the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run import Run, Say, Settings
from ..suite import Presentation, Suite
from .cases import CASES, QUICK_CASES, CellCase, parse_case
from .cell_report import CaseResult, CellReport
from .cell_text import format_markdown, format_table
from .plot import save_plot
from .problem import TOLERANCE
from .providers import PROVIDERS


class CellSuite(Suite):
    """Whole solves of graph cells and their adjoints against IGNN's loop and plain PyTorch."""

    name = "cells"
    summary = "graph cells and their adjoints solved to 3e-6, against IGNN's loop and plain PyTorch"
    case_format = "GRAPHSxNODESxFEATURES[-chains]"
    providers = PROVIDERS
    report_type = CellReport
    shown_as = Presentation(table=format_table, markdown=format_markdown, save_plot=save_plot)

    def cases(self, device: str, *, quick: bool = False) -> Sequence[CellCase]:
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> CellCase:
        return parse_case(text)

    def facts(self, settings: Settings) -> dict[str, Any]:
        return {"tolerance": TOLERANCE}

    def run_case(self, case: CellCase, run: Run, say: Say) -> CaseResult:
        from .harness import run_case

        return run_case(case, run, say)
