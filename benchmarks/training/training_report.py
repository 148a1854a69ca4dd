"""The result of a run of training steps as data: what the JSON holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..suite_report import MeasuredCase, Report
from .step_row import Row


@dataclass(frozen=True, kw_only=True)
class CaseResult(MeasuredCase):
    """One case.

    Attributes:
        parameters: of the model.
        rows: one per provider.
    """

    parameters: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class StepReport(Report):
    """One run."""

    cases: tuple[CaseResult, ...]

    def tables(self) -> Sequence[tuple[str, Sequence[Row]]]:
        """The rows of every case."""
        return [(case.name, case.rows) for case in self.cases]
