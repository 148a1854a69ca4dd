"""The result of a run as data: what the JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import Report, Status, check_machine, check_rows
from ..stored import build
from ..timing import Spread

NAME = "train"
"""The name of the suite."""
SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One provider. What was not measured is None.

    Attributes:
        provider: its name.
        status: ``timed``; ``refused`` because its gradient is another; or ``absent``.
        reason: why it was refused or is absent.
        steps: evaluations of the cell in the forward solve, of the sample that took most.
        cosine: of its parameter gradient with that of ``ours``.
        forward_ms, backward_ms: the two halves of a step.
        step_over_ours: both together, divided by those of ``ours`` in the same round.
    """

    provider: str
    status: Status
    reason: str | None
    steps: int | None = None
    cosine: float | None = None
    forward_ms: Spread | None = None
    backward_ms: Spread | None = None
    step_over_ours: Spread | None = None


@dataclass(frozen=True)
class CaseResult:
    """One case.

    Attributes:
        name: of the case.
        parameters: of the model.
        other_load_cores: cores that other processes used during the rounds, on average; None
            where the system does not say.
        rows: one per provider.
        arithmetic_cores: how many cores' worth of arithmetic the threads got; None where nobody
            looked.
    """

    name: str
    parameters: int
    other_load_cores: float | None
    rows: tuple[Row, ...]
    arithmetic_cores: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepReport(Report):
    """One run.

    Attributes:
        cases: in the order they were measured.
    """

    cases: tuple[CaseResult, ...]

    @property
    def measured(self) -> Sequence[CaseResult]:
        """The cases."""
        return self.cases

    @property
    def refusals(self) -> tuple[str, ...]:
        """One line for everything that was refused."""
        return tuple(
            f"{case.name}: {row.provider} {row.reason}"
            for case in self.cases
            for row in case.rows
            if row.status == "refused"
        )


def read_report(data: Mapping[str, Any], path: Path) -> StepReport:
    """A report from the contents of its JSON.

    Args:
        data: what the JSON holds.
        path: where it lies, for messages.

    Raises:
        ValueError: it is no such report; the message names what is missing or strange.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(
            f"a report of training steps has schema {SCHEMA}, but {path} has "
            f"{data.get('schema')!r}; measure again with this version"
        )
    report = build(StepReport, data, "the report")
    check_machine(report)
    for case in report.cases:
        check_rows(report, case.name, [row.provider for row in case.rows])
    return report
