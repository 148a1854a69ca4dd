"""Anderson acceleration in plain PyTorch, as a user without a package of kernels would write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import HISTORY_LENGTH


def solve_plain(f: Callable[[Tensor], Tensor], z0: Tensor, steps: int) -> Tensor:
    """Take ``steps`` undamped Anderson steps and return the best iterates.

    The next z is Σ a_i f(z_i) over the last m = ``HISTORY_LENGTH`` evaluations, with the weights
    that minimise ‖Σ a_i r_i‖, Σ a_i = 1: a is G⁻¹ 1, divided by its sum, G the inner products of
    the residuals r_i = f(z_i) − z_i. Only the newest row of G is computed in a step.

    Args:
        f: the map, [batch, dim] -> [batch, dim]; called ``steps + 1`` times.
        z0: the start, [batch, dim]; not modified.
        steps: the number of steps, at least 1.

    Returns:
        Per sample the evaluated iterate with the smallest residual norm, [batch, dim].
    """
    batch, dim = z0.shape
    images = z0.new_empty(batch, HISTORY_LENGTH, dim)
    residuals = z0.new_empty(batch, HISTORY_LENGTH, dim)
    products = z0.new_zeros(batch, HISTORY_LENGTH, HISTORY_LENGTH)
    z, best = z0, z0
    best_norm = z0.new_full((batch,), torch.inf)
    for step in range(steps + 1):
        slot, filled = step % HISTORY_LENGTH, min(step + 1, HISTORY_LENGTH)
        images[:, slot] = f(z)
        torch.sub(images[:, slot], z, out=residuals[:, slot])
        row = torch.bmm(residuals[:, slot, None], residuals[:, :filled].mT)[:, 0]
        norm = row[:, slot].sqrt()
        best = torch.where((norm < best_norm)[:, None], z, best)
        best_norm = torch.minimum(norm, best_norm)
        if step == steps:
            break
        products[:, slot, :filled] = products[:, :filled, slot] = row
        weights = torch.linalg.solve(products[:, :filled, :filled], torch.ones_like(row))
        weights /= weights.sum(dim=1, keepdim=True)
        z = torch.bmm(weights[:, None], images[:, :filled])[:, 0]
    return best
