"""A chart of a report."""

from __future__ import annotations

from pathlib import Path

from deq_kernels.optional import optional_import
from deq_zoo.files import save_figure

from ..provider import OURS
from .cell_report import CellReport


def save_plot(report: CellReport, path: Path) -> None:
    """Draw time over ours (log scale), per case and equation, into an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_import(extra="bench"):
        from matplotlib.figure import Figure

    groups = [
        (f"{case.name}\n{direction.value}", rows)
        for case in report.cases
        for direction, rows in case.rows.items()
    ]
    names = list(report.providers)
    figure = Figure(figsize=(max(8.0, 1.5 * len(groups)), 5.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        points = [
            (position + (index - (len(names) - 1) / 2) * width, row.time_over_ours.median)
            for position, (_, rows) in enumerate(groups)
            for row in rows
            if row.provider == name and row.time_over_ours is not None
        ]
        # The colour is set because a provider without any bar would share the next one's.
        axes.bar(
            [x for x, _ in points], [y for _, y in points], width, label=name, color=f"C{index}"
        )
    axes.set_yscale("log")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel(f"time / time of {OURS} (lower is faster)")
    axes.set_xticks(range(len(groups)), [title for title, _ in groups])
    axes.legend(ncols=3, fontsize="small")
    title = f"Structured cells, {report.dtype}, {report.machine_name}"
    if report.tests == "failed":
        title += "\nthe tests of this library FAILED on this machine"
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
