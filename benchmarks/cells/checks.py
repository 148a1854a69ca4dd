"""Nothing is timed before its answer is shown to be that of float64, to the common tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..provider import failure
from .problem import KAPPA, TOLERANCE, CellProblem, Direction

# The iterate that a loop stops at may be the one before or after the change that is small enough,
# and float32 rounds that change.
RESIDUAL_BOUND = 2 * TOLERANCE
# f contracts by κ, so that an answer is at most its residual over 1 - κ away.
DIFFERENCE_BOUND = RESIDUAL_BOUND / (1 - KAPPA)


@dataclass(frozen=True)
class Work:
    """What one solve of a provider did, and why it may not be timed.

    Attributes:
        steps: of the graph that took most; None where it failed.
        difference: largest difference of an entry to the answer in float64.
        residual: largest entry of f(x) - x, in float64.
        refusal: why the provider does not do the same work, or None.
    """

    steps: int | None
    difference: float
    residual: float
    refusal: str | None

    @classmethod
    def of_failure(cls, error: Exception) -> Work:
        """That of a provider that raised an error."""
        return cls(None, math.nan, math.nan, failure(error))


def check_answer(
    answer: Tensor, steps: int, direction: Direction, problem: CellProblem, anchor: Tensor
) -> Work:
    """Hold an answer against the one in float64.

    Args:
        answer: [N, n], on any device.
        steps: what the provider says of them.
        direction: which equation.
        problem: in float64 on the CPU.
        anchor: its answer in float64, [N, n].

    Raises:
        ValueError: the answer has another shape.
    """
    if answer.shape != anchor.shape:
        raise ValueError(f"must return {list(anchor.shape)} but returned {list(answer.shape)}")
    x = answer.double().cpu()
    difference = (x - anchor).abs().max().item()
    residual = (problem.evaluate(direction, x) - x).abs().max().item()
    # Both bounds are written so that a NaN fails them.
    refusal = None
    if not residual <= RESIDUAL_BOUND:
        refusal = f"residual {residual:.1e}, above {RESIDUAL_BOUND:g}"
    elif not difference <= DIFFERENCE_BOUND:
        refusal = f"answers differ by {difference:.1e}, above {DIFFERENCE_BOUND:g}"
    return Work(steps, difference, residual, refusal)
