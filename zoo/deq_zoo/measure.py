"""What a task is judged by: accuracy, micro-F1 or perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MeasureName = Literal["accuracy", "micro_f1", "perplexity"]


@dataclass(frozen=True)
class Measure:
    """A number made of the averages over a split.

    Attributes:
        name: as printed and written to the metrics.
        of: from the mean loss and the score (None where the task scores nothing) to the number.
        percent: print it as a percentage.
    """

    name: MeasureName
    of: Callable[[float, float | None], float]
    percent: bool = False

    def format(self, value: float) -> str:
        """The number with its name."""
        return f"{self.name} {100 * value:5.2f} %" if self.percent else f"{self.name} {value:.4g}"


def _score(loss: float, score: float | None) -> float:
    if score is None:
        raise ValueError("the task is judged by a score, but it scored nothing.")
    return score


def _perplexity(loss: float, score: float | None) -> float:
    # Beyond float64 at a loss of 709.8, which only a diverged model has.
    return math.exp(min(loss, 700.0))


ACCURACY = Measure("accuracy", _score, percent=True)
MICRO_F1 = Measure("micro_f1", _score, percent=True)
PERPLEXITY = Measure("perplexity", _perplexity)
MEASURES: dict[str, Measure] = {
    measure.name: measure for measure in (ACCURACY, MICRO_F1, PERPLEXITY)
}
