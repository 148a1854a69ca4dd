"""Training steps, as a suite of the command."""

from __future__ import annotations

from collections.abc import Sequence

from ..run import Run, Say
from ..suite import Presentation, Suite
from .cases import CASES, QUICK_CASES, StepCase, parse_case
from .plot import save_plot
from .providers import PROVIDERS
from .training_report import CaseResult, StepReport
from .training_text import format_markdown, format_table


class TrainingStepSuite(Suite):
    """One training step of each model with each gradient against torchdeq."""

    name = "training"
    summary = "training steps of the models, forward and backward apart, against torchdeq"
    case_format = "MODEL/PRESET/GRADIENT[/fixed]"
    providers = PROVIDERS
    report_type = StepReport
    shown_as = Presentation(table=format_table, markdown=format_markdown, save_plot=save_plot)

    def cases(self, device: str, *, quick: bool = False) -> Sequence[StepCase]:
        return QUICK_CASES if quick else CASES

    def find_case(self, text: str) -> StepCase:
        return parse_case(text)

    def run_case(self, case: StepCase, run: Run, say: Say) -> CaseResult:
        from .harness import run_case

        return run_case(case, run, say)
