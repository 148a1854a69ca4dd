"""A chart of a report."""

from __future__ import annotations

from pathlib import Path

from deq_kernels.optional import optional_import
from deq_zoo.files import save_figure

from .training_report import StepReport


def save_plot(report: StepReport, path: Path) -> None:
    """Draw both halves of a step as stacked bars, per case and provider, into an image.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_import(extra="bench"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 1.4 * len(report.cases)), 5.0), layout="constrained")
    axes = figure.subplots()
    names = list(report.providers)
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        bars = [
            (position + (index - (len(names) - 1) / 2) * width, row.forward_ms, row.backward_ms)
            for position, case in enumerate(report.cases)
            for row in case.rows
            if row.provider == name
        ]
        timed = [(x, f.median, b.median) for x, f, b in bars if f is not None and b is not None]
        places = [x for x, _, _ in timed]
        forward, backward = [f for _, f, _ in timed], [b for _, _, b in timed]
        axes.bar(places, forward, width, label=f"{name}, forward", color=f"C{index}")
        axes.bar(
            places,
            backward,
            width,
            bottom=forward,
            label=f"{name}, backward",
            color=f"C{index}",
            alpha=0.5,
        )
    axes.set_ylabel("milliseconds of a training step")
    titles = [case.name.replace("/", "\n") for case in report.cases]
    axes.set_xticks(range(len(titles)), titles)
    axes.legend(ncols=min(len(names), 4), fontsize="small")
    title = f"Training steps, {report.dtype}, {report.machine_name}"
    if report.tests == "failed":
        title += "\nthe tests of this library FAILED on this machine"
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
