"""Good Broyden with all its options in dense float64 matrices, one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from python_tests.problems import Map, dense_product_form


@dataclass(frozen=True)
class BroydenOracle:
    """What a solve without a stopping rule must do; the formulas of docs/algebra.md, section 1.

    Attributes:
        iterates: where f was evaluated, in turn.
        trace: the residual norms there.
        gamma: the scale of the initial inverse at the end.
        inverse: H at the end, the last secant pair included.
        rank: its factors.
        shortened: how often a step was shortened.
    """

    iterates: list[Tensor]
    trace: Tensor
    gamma: float
    inverse: Tensor
    rank: int
    shortened: int

    @classmethod
    def run(
        cls,
        f: Map,
        z0: Tensor,
        evaluations: int,
        *,
        history_length: int,
        damping: float = 1.0,
        gamma: float | str = 1.0,
        search: bool = False,
        drop: bool = False,
    ) -> BroydenOracle:
        """Evaluate f on vectors [dim] `evaluations` times, from z0."""
        z = z0.clone()
        scale = 1.0 if isinstance(gamma, str) else gamma
        estimate = gamma == "auto"
        directions: list[Tensor] = []
        steps: list[float] = []
        base, backtracks, shortened = 0.0, 0, 0
        iterates, trace = [], []
        for n in range(evaluations):
            r = f(z) - z
            size = float(r.norm())
            iterates.append(z.clone())
            trace.append(size)
            last = n + 1 == evaluations
            if search and directions and backtracks < 2 and not last:
                a = steps[-1]
                if size > (1 + 1 / (1 + n) ** 2 - 1e-4 * a**2) * base:
                    # q(t) = base² − 2 base² t + (…) t² with q(a) = size².
                    curvature = (size**2 - base**2 + 2 * base**2 * a) / a**2
                    shorter = min(0.5 * a, max(0.1 * a, base**2 / curvature))
                    z = z + (shorter - a) * directions[-1]
                    steps[-1] = shorter
                    backtracks, shortened = backtracks + 1, shortened + 1
                    continue
            if estimate and len(directions) == 1 and not last:
                s, y = steps[0] * directions[0], r - directions[0] / scale
                found = float(-(s @ y) / (y @ y))
                estimate = False
                if found > 0:
                    scale = min(1e3, max(1e-3, found))
                    directions, steps = [], []
            if len(directions) > history_length:
                if last and not drop:
                    break
                directions, steps = (directions[1:], steps[1:]) if drop else ([], [])
            if last and not directions:
                break
            directions.append(cls._direction(r, directions, steps, scale))
            steps.append(damping)
            base, backtracks = size, 0
            if not last:
                z = z + damping * directions[-1]
        rank = max(0, len(directions) - 1)
        kept = torch.stack(directions) if rank else z0[None]
        inverse = dense_product_form(kept, torch.tensor(steps).double(), scale)
        values = torch.tensor(trace, dtype=torch.float64)
        return cls(iterates, values, scale, inverse, rank, shortened)

    @staticmethod
    def _direction(r: Tensor, directions: list[Tensor], steps: list[float], scale: float) -> Tensor:
        """p = −H r, where H holds the factor that p itself enters."""
        if not directions:
            return scale * r
        newest, step = directions[-1], steps[-1]
        before = dense_product_form(torch.stack(directions), torch.tensor(steps).double(), scale)
        w = before @ r
        share = float(newest @ w / (newest @ newest))
        # p + w + (p + (step − 1) newest) share = 0
        return -(w + (step - 1) * share * newest) / (1 + share)
