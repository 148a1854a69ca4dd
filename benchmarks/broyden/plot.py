"""The chart of whole solves."""

from pathlib import Path

from ..chart import draw_bars, draw_time_over_ours, new_figure, save_chart
from .solve_report import SolveReport
from .solve_row import Row


def save_plot(report: SolveReport, path: Path) -> None:
    """Draw time over ours (log scale) and the share of the ceiling, per case, into an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    names = list(report.providers)
    groups = [(case.name, case.rows) for case in report.cases]
    figure = new_figure(1.5 * len(groups), 8.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    draw_time_over_ours(upper, groups, names)
    upper.legend(ncols=len(names), fontsize="small")
    draw_bars(lower, groups, names, _percent_of_ceiling)
    lower.axhline(100.0, color="black", linewidth=0.8)
    lower.set_ylabel(f"least traffic / time, % of {report.ceiling}")
    lower.tick_params(axis="x", rotation=20)
    lower.set_xlabel("case: batch x dim x steps")
    save_chart(figure, report, f"{report.method} solves", path)


def _percent_of_ceiling(row: Row) -> float | None:
    return None if row.floor_share is None else 100 * row.floor_share
