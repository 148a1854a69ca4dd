"""Reports of training steps as text: a table for the terminal, Markdown for a README."""

from __future__ import annotations

from ..columns import table_lines
from ..provider import OURS
from ..text import (
    machine_line,
    markdown_origin,
    markdown_row,
    neighbours,
    three_digits,
    warnings,
)
from .step_row import COLUMNS, Row
from .training_report import CaseResult, StepReport

_NOTES = """\
ms: medians of the two halves of a training step. / ours: median over the rounds of both together,
divided by those of ours. steps: evaluations of the cell in the forward solve, of the sample that
takes most. cosine: of the parameters' gradient with that of ours."""


def format_table(report: StepReport) -> str:
    """Return the report as an aligned plain-text table, one block per case."""
    blocks = [machine_line(report), *(_block(case, report.dtype) for case in report.cases), _NOTES]
    return "\n\n".join(blocks + warnings(report))


def format_markdown(report: StepReport, source: str) -> str:
    """Return the report as Markdown, a row per case.

    Args:
        report: what to show.
        source: path of its JSON as seen from the document, named below the table.
    """
    names = list(report.providers)
    lines = [
        markdown_row(["model / preset / gradient", *names]),
        markdown_row(["---", *("---:" for _ in names)]),
    ]
    for case in report.cases:
        rows = {row.provider: row for row in case.rows}
        lines.append(markdown_row([case.name, *(_markdown_cell(rows[name]) for name in names)]))
    blocks = [
        "\n".join(lines),
        f"Median milliseconds of the forward and the backward half of one {report.dtype} training "
        f"step over {report.rounds} interleaved rounds (in brackets: times that both take of "
        "ours).",
        *markdown_origin(report, source),
    ]
    return "\n\n".join(blocks)


def _block(case: CaseResult, dtype: str) -> str:
    title = f"{case.name} {dtype}, {case.parameters:,} parameters"
    title += neighbours(case)
    return "\n".join([title, *table_lines(COLUMNS, case.rows)])


def _markdown_cell(row: Row) -> str:
    if row.forward_ms is None or row.backward_ms is None:
        return row.status
    text = f"{three_digits(row.forward_ms.median)} + {three_digits(row.backward_ms.median)}"
    if row.step_over_ours is not None and row.provider != OURS:
        text += f" ({row.step_over_ours.median:.2f}×)"
    return text
