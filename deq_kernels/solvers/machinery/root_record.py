"""What is known of an equation's solve: the best point of each sample by ‖fun(x)‖ itself.

A solver judges f(x) − x for f(x) = x + α fun(x), which rounding takes digits from: all of them
where α fun(x) is below half a unit in the last place of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.termination import Counter, Norm, Status, Tables

SMALLEST, LARGEST = 1e-150, 1e100
"""Tolerances between which the norm of what is near them can be taken from plain squares."""


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
    """

    def __init__(self, start: Tensor, *, fatol: float, alpha: float) -> None:
        self._fatol, self._alpha = fatol, abs(alpha)
        self._norm_of = _plain_norm if SMALLEST < fatol < LARGEST else _scaled_norm
        self.x = start.clone()
        self.value = torch.full_like(start, torch.nan)
        self.norm = start.new_full((len(start),), torch.nan, dtype=torch.float64)

    @property
    def found(self) -> Tensor:
        """[B] bool: samples whose best point is a root."""
        return self.norm <= self._fatol

    def add(self, x: Tensor, value: Tensor) -> None:
        """Take in fun(x) = value, rows [B, n]; a sample that is at a root stays there."""
        norm = self._norm_of(value)
        # NaN before the first one, and as long as none was a number.
        better = ((norm < self.norm) & (self.norm > self._fatol)) | self.norm.isnan()
        rows = better[:, None]
        self.x.copy_(torch.where(rows, x, self.x))
        self.value.copy_(torch.where(rows, value, self.value))
        self.norm.copy_(torch.where(better, norm, self.norm))

    def stop(self, tables: Tables) -> None:
        """Let the samples that are at a root stop."""
        status = tables.counters[:, Counter.STATUS]
        status.masked_fill_(self.found, int(Status.CONVERGED))
        tables.active.copy_((status == Status.RUNNING).sum())

    def settle(self, tables: Tables) -> None:
        """At the end of a solve, let its tables say which samples are at a root.

        One that its solver takes for converged without being there has stalled: the solver cannot
        tell its steps from rounding.
        """
        status = tables.counters[:, Counter.STATUS]
        status.masked_fill_(status == Status.CONVERGED, int(Status.STALLED))
        tables.norms[:, Norm.BEST].copy_(self._alpha * self.norm)
        self.stop(tables)


def _plain_norm(rows: Tensor) -> Tensor:
    """‖·‖₂ of each row, [B] float64."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def _scaled_norm(rows: Tensor) -> Tensor:
    """The same where squares overflow or underflow in float64."""
    if not rows.shape[1]:
        return _plain_norm(rows)
    rows = rows.double()
    largest = rows.abs().amax(1)
    unit = torch.where((largest > 0.0) & largest.isfinite(), largest, 1.0)
    return unit * _plain_norm(rows / unit[:, None])
