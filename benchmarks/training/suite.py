"""Training steps, as a suite of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..provider import Provider
from ..suite import Settings, Suite
from .cases import CASES, QUICK_CASES, StepCase, parse_case
from .providers import PROVIDERS, Bind
from .report import NAME, StepReport, read_report


class TrainingStepSuite(Suite):
    """One training step of each model with each gradient against torchdeq."""

    name = NAME
    summary = "training steps of the models, forward and backward apart, against torchdeq"
    case_format = "MODEL/PRESET/GRADIENT[/fixed]"
    providers = PROVIDERS

    def cases(self, device: str, *, quick: bool = False) -> Sequence[StepCase]:
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> StepCase:
        return parse_case(text)

    def measure(
        self, cases: Sequence[StepCase], providers: Sequence[Provider[Bind]], settings: Settings
    ) -> StepReport:
        from .harness import run_benchmark

        return run_benchmark(cases, providers, settings)

    def read(self, data: Mapping[str, Any], path: Path) -> StepReport:
        return read_report(data, path)

    def format_table(self, report: StepReport) -> str:
        from .table import format_table

        return format_table(report)

    def format_markdown(self, report: StepReport, source: str) -> str:
        from .table import format_markdown

        return format_markdown(report, source)

    def save_plot(self, report: StepReport, path: Path) -> None:
        from .plot import save_plot

        save_plot(report, path)
