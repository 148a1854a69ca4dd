"""What the charts of all suites are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_kernels.optional import optional_import
from deq_zoo.files import save_figure

from .provider import OURS
from .suite_report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Group = tuple[str, Sequence[Any]]
"""What is written below a group of bars, and its rows, one per provider."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; never narrower than 8.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with optional_import(extra="bench"):
        from matplotlib.figure import Figure

    return Figure(figsize=(max(8.0, width), height), layout="constrained")


def draw_bars(
    axes: Axes,
    groups: Sequence[Group],
    names: Sequence[str],
    height: Callable[[Any], float | None],
    *,
    base: Callable[[Any], float] = lambda row: 0.0,
    suffix: str = "",
    **style: Any,
) -> None:
    """One bar per provider in each group.

    Args:
        axes: to draw into.
        groups: from left to right.
        names: of the providers, in the order of their bars.
        height: of the bar of a row; None where it has none.
        base: where the bar of a row begins.
        suffix: of the names in the legend.
        style: of all bars.
    """
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        bars = [
            (position + (index - (len(names) - 1) / 2) * width, value, base(row))
            for position, (_, rows) in enumerate(groups)
            for row in rows
            if row.provider == name and (value := height(row)) is not None
        ]
        places, heights, bases = ([bar[part] for bar in bars] for part in range(3))
        # The colour is set because a provider without any bar would share the next one's.
        color = f"C{index}"
        axes.bar(
            places, heights, width, bottom=bases, label=f"{name}{suffix}", color=color, **style
        )
    axes.set_xticks(range(len(groups)), [title for title, _ in groups])


def draw_time_over_ours(axes: Axes, groups: Sequence[Group], names: Sequence[str]) -> None:
    """`draw_bars` of `time_over_ours`, on a logarithmic scale."""

    def ratio(row: Any) -> float | None:
        return None if row.time_over_ours is None else row.time_over_ours.median

    draw_bars(axes, groups, names, ratio)
    axes.set_yscale("log")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel(f"time / time of {OURS} (lower is faster)")


def save_chart(figure: Figure, report: Report, what: str, path: Path) -> None:
    """Write the figure with a title that says what was measured on which machine."""
    title = f"{what}, {report.dtype}, {report.machine_name}"
    if report.tests == "failed":
        title += "\nthe tests of this library FAILED on this machine"
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
