"""Pictures of a training run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deq_zoo.files import save_figure
from deq_zoo.measure import MEASURES
from deq_zoo.metrics import EpochMetrics


def plot_training(epochs: Sequence[EpochMetrics], path: Path) -> None:
    """Draw loss, the measure of the task and solver steps over the epochs into one PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    loss, judged, steps = figure.subplots(1, 3)
    numbers = [metrics.epoch for metrics in epochs]
    measure = MEASURES[epochs[0].train.measure]
    factor = 100 if measure.percent else 1
    for part in ("train", "validation"):
        averages = [getattr(metrics, part) for metrics in epochs]
        loss.plot(numbers, [average.loss for average in averages], label=part)
        judged.plot(numbers, [factor * average.value for average in averages], label=part)
        solved = [
            (number, average.solver_steps)
            for number, average in zip(numbers, averages, strict=True)
            if average.solver_steps is not None
        ]
        steps.plot([number for number, _ in solved], [mean for _, mean in solved], label=part)
    loss.set(ylabel="loss", **_scale([metrics.train.loss for metrics in epochs]))
    judged.set(ylabel=f"{measure.name} (%)" if measure.percent else measure.name)
    steps.set(ylabel="cell evaluations per solve")
    pretraining = [metrics.epoch for metrics in epochs if metrics.phase == "pretrain"]
    for axes in (loss, judged, steps):
        axes.set(xlabel="epoch", xlim=(0.5, max(numbers) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if pretraining:
            axes.axvspan(0.5, max(pretraining) + 0.5, color="0.9", label="pretraining")
    loss.legend()
    save_figure(figure, path)


def _scale(values: Sequence[float]) -> dict[str, Any]:
    """Logarithmic where all values are above 0."""
    return {"yscale": "log"} if min(values) > 0 else {}
