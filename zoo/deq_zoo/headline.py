"""The number that a training run is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """A number made of the averages over a split.

    Attributes:
        name: as printed and written to the metrics.
        of: from the mean loss and the score (None where the task scores nothing) to the number.
        higher_is_better: whether it is.
        percent: print it as a percentage.
    """

    name: str
    of: Callable[[float, float | None], float]
    higher_is_better: bool
    percent: bool = False

    def format(self, value: float) -> str:
        """The number with its name."""
        return f"{self.name} {100 * value:5.2f} %" if self.percent else f"{self.name} {value:.4g}"


def _score(loss: float, score: float | None) -> float:
    if score is None:
        raise ValueError("the headline is a score, but the task scored nothing.")
    return score


def _perplexity(loss: float, score: float | None) -> float:
    # Beyond float64 at a loss of 709.8, which only a diverged model has.
    return math.exp(min(loss, 700.0))


ACCURACY = Headline("accuracy", _score, higher_is_better=True, percent=True)
MICRO_F1 = Headline("micro-F1", _score, higher_is_better=True, percent=True)
PERPLEXITY = Headline("perplexity", _perplexity, higher_is_better=False)
