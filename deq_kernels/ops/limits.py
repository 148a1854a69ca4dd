"""The numbers of the stopping rule, as `csrc/algebra/termination.h` has them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Limits:
    """The stopping rule of one solve.

    Attributes:
        max_steps: largest number of evaluations.
        rtol: relative tolerance on ‖f(z) − z‖ against ‖f(z)‖.
        atol: absolute tolerance on ‖f(z) − z‖.
        stall_steps: evaluations without progress after which a sample has stalled; 0: never.
        divergence_factor: growth over the first residual at which a sample has diverged.
    """

    max_steps: int
    rtol: float = 0.0
    atol: float = 0.0
    stall_steps: int = 0
    divergence_factor: float = inf
