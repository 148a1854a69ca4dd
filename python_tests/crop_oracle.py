"""Conjugate residuals with optimal trial vectors as published, by least squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def crop_residuals(
    f: Callable[[Tensor], Tensor], z: Tensor, *, damping: float, steps: int
) -> list[float]:
    """‖f(z) − z‖ of `steps` evaluations of one sample by CROP, none of them taken back.

    Keeps the last two combined points y beside their residuals o, where the ops do without y.

    Source: Ziolkowski, Weijo, Jørgensen and Olsen 2008, with the subspace of three vectors.
    """
    norms: list[float] = []
    points: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        r = f(z) - z
        norms.append(float(torch.linalg.vector_norm(r)))
        newest = [(z, r), *points[:2]]
        y, o = newest[0]
        if points:
            moves = [(a - b, c - d) for (a, c), (b, d) in zip(newest[1:], newest[:-1], strict=True)]
            changes = torch.stack([change.flatten() for _, change in moves], 1)
            weights = torch.linalg.lstsq(changes, -r.flatten(), driver="gelsd").solution
            for weight, (move, change) in zip(weights, moves, strict=True):
                y, o = y + weight * move, o + weight * change
        points = [(y, o), *points[:1]]
        z = y + damping * o
    return norms
