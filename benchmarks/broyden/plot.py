"""A chart of a report."""

from pathlib import Path
from typing import TYPE_CHECKING

from deq_kernels.optional import optional_import
from deq_zoo.files import save_figure

from ..provider import OURS
from .solve_report import Row, SolveReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

    Height = Callable[[Row], float | None]


def save_plot(report: SolveReport, path: Path) -> None:
    """Draw time over ours (log scale) and the share of the ceiling, per case, into an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_import(extra="bench"):
        from matplotlib.figure import Figure

    names = list(report.providers)
    figure = Figure(figsize=(max(8.0, 1.5 * len(report.cases)), 8.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _bars(upper, report, names, _time_over_ours)
    upper.set_yscale("log")
    upper.axhline(1.0, color="black", linewidth=0.8)
    upper.set_ylabel(f"time / time of {OURS} (lower is faster)")
    upper.legend(ncols=len(names), fontsize="small")
    _bars(lower, report, names, _percent_of_ceiling)
    lower.axhline(100.0, color="black", linewidth=0.8)
    lower.set_ylabel(f"least traffic / time, % of {report.ceiling}")
    lower.set_xticks(range(len(report.cases)), [case.name for case in report.cases], rotation=20)
    lower.set_xlabel("case: batch x dim x steps")
    title = f"{report.method} solves, {report.dtype}, {report.machine_name}"
    if report.tests == "failed":
        title += "\nthe tests of this library FAILED on this machine"
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _bars(axes: "Axes", report: SolveReport, names: list[str], height: "Height") -> None:
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        points = [
            (position + (index - (len(names) - 1) / 2) * width, value)
            for position, case in enumerate(report.cases)
            for row in case.rows
            if row.provider == name and (value := height(row)) is not None
        ]
        # The colour is set because a provider without any bar would share the next one's.
        axes.bar(
            [x for x, _ in points], [y for _, y in points], width, label=name, color=f"C{index}"
        )


def _time_over_ours(row: Row) -> float | None:
    return None if row.time_over_ours is None else row.time_over_ours.median


def _percent_of_ceiling(row: Row) -> float | None:
    return None if row.floor_share is None else 100 * row.floor_share
