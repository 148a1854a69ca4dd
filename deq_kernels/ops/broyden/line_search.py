"""A derivative-free, nonmonotone line search along the Broyden direction, per sample.

A trial z + a p is accepted when ‖r(z + a p)‖ ≤ (1 + η − σ a²) ‖r(z)‖, with η = 1 / (1 + n)² after
n evaluations: a summable allowance, so that residuals stay bounded. Otherwise a shrinks to the
minimum of the parabola through ‖r(z)‖² and ‖r(z + a p)‖² whose slope at 0 is −2 ‖r(z)‖², the slope
along Newton's direction, kept within [0.1 a, 0.5 a].

Source: Li and Fukushima 2000, A derivative-free line search and global convergence of Broyden-like
method for nonlinear equations; La Cruz, Martínez and Raydan 2006, section 2 (DF-SANE).
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BACKTRACKS = 2
"""How often the solver shortens a step before it takes it as it is, if it is not rejected.

Few: a direction from a young history is often none of descent, but what the evaluation at its end
teaches is what makes the next one better. With 8 instead of 2, expansive linear maps and tanh maps
took several times the evaluations or failed, and no problem was solved that 2 left unsolved.
"""

DECREASE = 1e-4
"""σ, the share of the squared step length by which a residual must fall."""

SHORTEST, LONGEST = 0.1, 0.5
"""What a step length is multiplied with, at least and at most."""


def accepted(base: Tensor, step: Tensor, evaluations: Tensor) -> Tensor:
    """The largest residual norm that a trial may have, [batch].

    Args:
        base: ‖r(z)‖ where the direction starts.
        step: the step length a of the trial.
        evaluations: those before the trial.
    """
    allowance = 1.0 / (1.0 + evaluations.double()).square()
    return (1.0 + allowance - DECREASE * step.square()) * base


def shorter(base: Tensor, step: Tensor, residual: Tensor) -> Tensor:
    """The next step length, from ‖r(z + a p)‖, which may be anything, [batch]."""
    growth = (residual / base).square()
    minimum = step.square() / (growth + 2.0 * step - 1.0)
    minimum = torch.where(growth < torch.inf, minimum, 0.0)
    return torch.maximum(SHORTEST * step, torch.minimum(minimum, LONGEST * step))
