"""The chart of structured cells."""

from __future__ import annotations

from pathlib import Path

from ..chart import draw_time_over_ours, new_figure, save_chart
from .cell_report import CellReport


def save_plot(report: CellReport, path: Path) -> None:
    """Draw time over ours (log scale), per case and equation, into an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    groups = [
        (f"{case.name}\n{direction.value}", rows)
        for case in report.cases
        for direction, rows in case.rows.items()
    ]
    figure = new_figure(1.5 * len(groups), 5.0)
    axes = figure.subplots()
    draw_time_over_ours(axes, groups, list(report.providers))
    axes.legend(ncols=3, fontsize="small")
    save_chart(figure, report, "Structured cells", path)
