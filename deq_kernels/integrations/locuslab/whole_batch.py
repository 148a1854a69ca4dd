"""Broyden's method with norms and stopping over the whole batch, as these repositories have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deq_kernels.options import check_count, check_flag
from deq_kernels.solvers import Broyden
from deq_kernels.solvers.machinery.stepwise import StepwiseSolve, Visit, never_done

PATIENCE = 30
LITTLE_PROGRESS = 1.3
NEARLY = 3.0
"""A solve within 3 eps whose last 30 objectives span less than a factor of 1.3 ends."""


def whole_norm(norms: Tensor) -> float:
    """‖·‖ of the whole batch from those of its samples, [B] float64."""
    return float(norms.square().sum().sqrt())


def stuck(trace: list[float], eps: float) -> bool:
    """The rule for lack of progress, once more than 30 steps are in the trace."""
    recent = trace[-PATIENCE:]
    if not all(map(math.isfinite, recent)):
        return False
    return trace[-1] < NEARLY * eps and max(recent) < LITTLE_PROGRESS * min(recent)


class BatchWalk:
    """Broyden steps of a whole batch.

    Args:
        f: map of states.
        x0: the start.
        threshold: largest number of steps.
        history_length: factors kept.
        ls: whether steps are shortened.
        keep_inverse: whether `inverse` will be asked for.
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        x0: Tensor,
        *,
        threshold: int,
        history_length: int,
        ls: bool,
        keep_inverse: bool = False,
    ) -> None:
        check_count("threshold", threshold)
        check_flag("ls", ls)
        solver = never_done(
            Broyden,
            history_length=history_length,
            when_full="drop_oldest",
            line_search="derivative_free" if ls else None,
            max_steps=threshold + 1,
        )
        self._walk = StepwiseSolve(solver, f, x0, keep_inverse=keep_inverse)
        self._steps = threshold
        z = self._walk.z
        self._last = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        self.best = z.clone()
        self.inverse = self._walk.inverse

    def visits(self) -> Iterator[Visit]:
        """The evaluations: that at x0, and one after each step, while a sample takes part."""
        for _ in range(self._steps + 1):
            yield self._walk.advance()
            if not bool(self._walk.running.any()):
                return

    def objective(self, visit: Visit) -> float:
        """‖f(z) − z‖ over the samples that have not diverged; NaN where one is not finite.

        Samples that have stopped count with their last one.
        """
        residual = torch.where(visit.judged, visit.residual, self._last)
        self._last = torch.where(residual.isfinite(), residual, self._last)
        if bool(visit.diverged.all()):
            return math.nan
        norm = whole_norm(residual.masked_fill(visit.diverged, 0.0))
        return norm if math.isfinite(norm) else math.nan

    def image_norm(self, visit: Visit) -> float:
        """‖f(z)‖ over the same samples."""
        return whole_norm(visit.f_norm.masked_fill(visit.diverged, 0.0))

    def keep(self, visit: Visit) -> None:
        """Make this iterate the best; samples that have diverged keep the one before."""
        if bool(visit.diverged.any()):
            self.best = torch.where(visit.diverged[:, None], self.best, visit.z)
        else:
            self.best.copy_(visit.z)


def protective_factor(x0: Tensor) -> int:
    """Their "seq_len" or "n_elem": elements per channel of a state [B, channels, ...]."""
    return max(1, x0.shape[2:].numel())
