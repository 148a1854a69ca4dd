"""The scale γ of the initial inverse H₀ = −γ I, estimated from the first step.

γ = −⟨s, y⟩ / ⟨y, y⟩ makes ‖s + γ y‖ smallest: −γ y is the best guess of the step s that a multiple
of the change y of the residual can be.

Source: Barzilai and Borwein 1988, Two-point step size gradient methods, equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST, MOST = 1e-3, 1e3
"""Estimates are kept within these."""

CHANGED_SHARE = 1e-6
"""A ⟨y, y⟩ below this share of the terms it is made of leaves no digits."""


def estimate(
    gamma: Tensor, step: Tensor, pi: Tensor, norm_sq: Tensor, residual_sq: Tensor
) -> Tensor:
    """The new γ [batch], or the old one where the sums tell nothing.

    With s = a p and y = r − p / γ, as p = γ r₀; all sums in float64 and of vectors on one scale.

    Args:
        gamma: γ of the first direction p.
        step: a, the step taken along p.
        pi: ⟨p, r⟩, r the residual after the step.
        norm_sq: ⟨p, p⟩.
        residual_sq: ⟨r, r⟩.
    """
    before = norm_sq / (gamma * gamma)
    change_sq = residual_sq - 2.0 * pi / gamma + before
    along = step * (pi - norm_sq / gamma)
    found = -along / change_sq
    usable = (change_sq > CHANGED_SHARE * (residual_sq + before)) & (found > 0.0)
    usable &= found < torch.inf
    return torch.where(usable, found.clamp(LEAST, MOST), gamma)
