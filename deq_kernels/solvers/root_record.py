"""What is known of an equation's solve: the best point of each sample by ‖fun(x)‖ itself.

A solver judges f(x) − x for f(x) = x + α fun(x), which rounding takes digits from: all of them
where α fun(x) is below half a unit in the last place of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.termination import Counter, Norm, Status, Tables


class RootRecord:
    """Best points by ‖fun(x)‖₂, and which samples are at a root.

    Tensors only, updated in place: nothing waits for a GPU.

    Args:
        start: x0, rows [B, n].
        fatol: largest ‖fun(x)‖₂ of a root.
        alpha: α.

    Attributes:
        x, value: the best point of each sample, and fun there, [B, n].
        norm: ‖fun‖₂ there, [B] float64.
        evaluations: how many there were, [1].
        grew: samples whose second evaluation was larger than the first, [B] bool.
    """

    def __init__(self, start: Tensor, *, fatol: float, alpha: float) -> None:
        self._fatol, self._alpha = fatol, abs(alpha)
        self.x = start.clone()
        self.value = torch.full_like(start, torch.nan)
        self.norm = start.new_full((len(start),), torch.inf, dtype=torch.float64)
        self._first = torch.zeros_like(self.norm)
        self.grew = torch.zeros_like(self.norm, dtype=torch.bool)
        self.evaluations = torch.zeros(1, dtype=torch.int64, device=start.device)

    @property
    def found(self) -> Tensor:
        """[B] bool: samples whose best point is a root."""
        return self.norm <= self._fatol

    def add(self, x: Tensor, value: Tensor) -> None:
        """Take in fun(x) = value, rows [B, n]; a sample that is at a root stays there."""
        norm = _norm(value)
        begins, second = self.evaluations == 0, self.evaluations == 1
        better = begins | ((norm < self.norm) & ~self.found)
        self.x.copy_(torch.where(better[:, None], x, self.x))
        self.value.copy_(torch.where(better[:, None], value, self.value))
        self.grew |= second & ~(norm <= self._first)
        self._first.copy_(torch.where(begins, norm, self._first))
        self.norm.copy_(torch.where(better, norm, self.norm))
        self.evaluations += 1

    def settle(self, tables: Tables) -> None:
        """Let the tables of the solve say which samples are at a root, and those stop.

        One that its solver takes for converged without being there has stalled: the solver cannot
        tell its steps from rounding.
        """
        status = tables.counters[:, Counter.STATUS]
        status.masked_fill_(status == Status.CONVERGED, int(Status.STALLED))
        status.masked_fill_(self.found, int(Status.CONVERGED))
        tables.norms[:, Norm.BEST].copy_(self._alpha * self.norm)
        tables.active.copy_((status == Status.RUNNING).sum())


def _norm(rows: Tensor) -> Tensor:
    """‖·‖₂ of each row, [B] float64, whatever its size."""
    rows = rows.double()
    if not rows.shape[1]:
        return rows.new_zeros(len(rows))
    largest = rows.abs().amax(1)
    unit = torch.where((largest > 0.0) & largest.isfinite(), largest, 1.0)
    return unit * (rows / unit[:, None]).square().sum(1).sqrt()
