"""What torchdeq's solvers keep of a solve: traces, lowest errors and best iterates per sample."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from deq_kernels.options import check_choice
from deq_kernels.solvers.machinery.stepwise import Visit

Info = dict[str, Tensor]
"""torchdeq's `SolverStat`: abs_lowest, rel_lowest, nstep [B], abs_trace, rel_trace [B, N], and
sradius, which the layer fills in."""

MODES = ("abs", "rel")

BEFORE = 1e8
"""The error before anything was evaluated."""

PATIENCE = 30
"""Steps without progress after which a solve that is nearly there ends."""

LITTLE_PROGRESS = 1.3
"""Largest over smallest error within them."""

NEARLY = 3.0
"""The factor on the tolerance that is nearly there."""


def with_batch(x0: Tensor) -> Tensor:
    """x0 with a batch dimension: without dimensions it is one sample of one element."""
    return x0.reshape(1) if x0.dim() == 0 else x0


def new_info(
    abs_lowest: Tensor, rel_lowest: Tensor, abs_trace: Tensor, rel_trace: Tensor, nstep: Tensor
) -> Info:
    """The dictionary, with its keys in torchdeq's order."""
    return {
        "abs_lowest": abs_lowest,
        "rel_lowest": rel_lowest,
        "abs_trace": abs_trace,
        "rel_trace": rel_trace,
        "nstep": nstep,
        "sradius": torch.tensor([-1.0]),
    }


class Record:
    """Follows the errors ‖f(z) − z‖ ("abs") and ‖f(z) − z‖ / (‖f(z)‖ + 1e-9) ("rel").

    Args:
        x0: the start, rows [B, d].
        tol: tolerance on the errors of `stop_mode`.
        stop_mode: "abs" or "rel".
        indexing: after which steps `trajectory` receives the best iterates; None for none.
        return_final: count the last finite iterate as the best, and go on whatever the errors.
    """

    def __init__(
        self,
        x0: Tensor,
        *,
        tol: float,
        stop_mode: str,
        indexing: Collection[int] | None,
        return_final: bool,
    ) -> None:
        check_choice("stop_mode", stop_mode, MODES)
        self._tol, self._mode, self._final = tol, stop_mode, return_final
        self._indexing = indexing or ()
        start = x0.new_full((len(x0),), BEFORE, dtype=torch.float64)
        self._traces = {mode: [start] for mode in MODES}
        self._lowest = dict.fromkeys(MODES, start)
        self._steps = {mode: torch.zeros_like(start) for mode in MODES}
        self.best = x0.clone()
        self.trajectory: list[Tensor] = []

    def add(
        self, visit: Visit, candidate: Tensor, number: int, *, index: int, scale: float = 1.0
    ) -> bool:
        """Take in one step, and say whether the solve has ended.

        Args:
            visit: the evaluation.
            candidate: the iterate it speaks for, [B, d].
            number: the step's number in the statistics.
            index: its number for `indexing`.
            scale: factor on ‖f(z) − z‖.
        """
        absolute = scale * visit.residual
        errors = {"abs": absolute, "rel": absolute / (visit.f_norm + 1e-9)}
        for mode, error in errors.items():
            lower = visit.judged & (error < self._lowest[mode])
            if self._final:
                lower = lower | (visit.judged & error.isfinite())
            if mode == self._mode:
                self.best = torch.where(lower[:, None], candidate, self.best)
            self._lowest[mode] = torch.where(lower, error, self._lowest[mode])
            self._steps[mode] = torch.where(lower, float(number), self._steps[mode])
            self._traces[mode].append(torch.where(visit.judged, error, self._lowest[mode]))
        if index in self._indexing:
            self.trajectory.append(self.best)
        return self._ended(self._traces[self._mode][-1], visit.diverged)

    def _ended(self, error: Tensor, diverged: Tensor) -> bool:
        """torchdeq's rules, over the samples that have not diverged."""
        counted = error[~diverged]
        if not counted.numel():
            return True
        worst = float(counted.max())  # NaN where one is
        if not self._final and worst < self._tol:
            return True
        trace = self._traces[self._mode]
        if len(trace) - 1 <= PATIENCE or not worst < NEARLY * self._tol:
            return False
        recent = torch.stack(trace[-PATIENCE:])[:, ~diverged]
        progress = recent.amax(dim=0) / recent.amin(dim=0)
        return bool((progress < LITTLE_PROGRESS).all())

    def states(self, shape: torch.Size) -> list[Tensor]:
        """The trajectory as the caller knows states; the best ones where no index was reached."""
        if self._indexing and not self.trajectory:
            self.trajectory.append(self.best)
        return [state.view(shape) for state in self.trajectory]

    def info(self, width: int, dtype: torch.dtype) -> Info:
        """The statistics, their traces filled up to `width` with the lowest errors.

        Args:
            width: columns of the traces.
            dtype: that of the state; numbers of 16-bit states are float32.
        """
        number = torch.promote_types(dtype, torch.float32)
        for mode in MODES:
            missing = width - len(self._traces[mode])
            self._traces[mode] += [self._lowest[mode]] * missing
        traces = {mode: torch.stack(self._traces[mode], dim=1).to(number) for mode in MODES}
        lowest = {mode: self._lowest[mode].to(number) for mode in MODES}
        nstep = self._steps[self._mode].float()
        return new_info(lowest["abs"], lowest["rel"], traces["abs"], traces["rel"], nstep)
