"""The chart of training steps."""

from __future__ import annotations

from pathlib import Path

from ..chart import draw_bars, new_figure, save_chart
from .step_row import Row
from .training_report import StepReport


def save_plot(report: StepReport, path: Path) -> None:
    """Draw both halves of a step as stacked bars, per case and provider, into an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    names = list(report.providers)
    groups = [(case.name.replace("/", "\n"), case.rows) for case in report.cases]
    figure = new_figure(1.4 * len(groups), 5.0)
    axes = figure.subplots()
    draw_bars(axes, groups, names, _forward, suffix=", forward")
    draw_bars(
        axes,
        groups,
        names,
        _backward,
        base=lambda row: row.forward_ms.median,
        suffix=", backward",
        alpha=0.5,
    )
    axes.set_ylabel("milliseconds of a training step")
    axes.legend(ncols=min(len(names), 4), fontsize="small")
    save_chart(figure, report, "Training steps", path)


def _forward(row: Row) -> float | None:
    return None if row.forward_ms is None else row.forward_ms.median


def _backward(row: Row) -> float | None:
    return None if row.backward_ms is None else row.backward_ms.median
