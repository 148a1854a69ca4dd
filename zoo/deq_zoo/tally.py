"""Sums over the batches of a split, kept on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_zoo.measure import Measure
from deq_zoo.metrics import PartMetrics
from deq_zoo.processes import ALONE, Processes
from deq_zoo.task import Outcome


class Tally:
    """Adds outcomes up.

    Args:
        device: where they are.
    """

    def __init__(self, device: torch.device) -> None:
        # items, loss, penalty, penalised, score above and below, solved, steps, converged
        self._sums = torch.zeros(9, dtype=torch.float64, device=device)
        self._scored = False

    def add(self, outcome: Outcome, penalty: Tensor | None = None) -> None:
        """Add a batch, and the Jacobian penalty that its loss was given."""
        sums, items = self._sums, outcome.items
        sums[0] += items
        sums[1] += outcome.loss.detach().double() * items
        if penalty is not None:
            sums[2] += penalty.detach().double() * items
            sums[3] += items
        if outcome.score is not None:
            self._scored = True
            above, below = outcome.score
            sums[4] += above
            sums[5] += below
        if outcome.solution is not None:
            steps = outcome.solution.steps
            sums[6] += steps.numel()
            sums[7] += steps.sum()
            sums[8] += outcome.solution.converged.sum()

    def loss(self) -> float:
        """Mean so far. The host waits for the device."""
        items, loss = self._sums[:2].tolist()
        return loss / items if items else 0.0

    def averages(self, measure: Measure, processes: Processes = ALONE) -> PartMetrics:
        """Over all processes. The host waits for the device."""
        sums = processes.sum(self._sums.clone()).tolist()
        items, loss, penalty, penalised, above, below, solved, steps, converged = sums
        mean = loss / items
        score = _ratio(above, below) if self._scored else None
        return PartMetrics(
            loss=mean,
            measure=measure.name,
            value=measure.of(mean, score),
            jacobian_penalty=_ratio(penalty, penalised),
            solver_steps=_ratio(steps, solved),
            converged=_ratio(converged, solved),
        )


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
