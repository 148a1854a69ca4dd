"""How the solves of a run ended, counted on the device and said once."""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.gradients import Equation, failures
from deq_kernels.solvers import Solution

SHARE = 0.01
"""Below this share of the samples, unconverged ones are not worth a line."""


class SolveTally:
    """Counts samples and failures by equation; a layer's `on_solve`.

    Recipes cut solves by design, so that this is no warning.

    Args:
        device: where the solves are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # samples, and those that used up their steps, stalled, diverged
        self._sums: dict[Equation, Tensor] = {}
        self._said = False

    def __call__(self, solution: Solution, equation: Equation) -> None:
        """Count; the host does not wait."""
        if equation not in self._sums:
            self._sums[equation] = torch.zeros(4, dtype=torch.float64, device=self._device)
        sums = self._sums[equation]
        sums[0] += len(solution.status)
        sums[1:] += failures(solution)[:3]

    def note(self) -> str | None:
        """One line, once for a run, where solves left samples unconverged. The host waits."""
        if self._said:
            return None
        parts = []
        for equation, sums in self._sums.items():
            samples, cut, stalled, diverged = sums.tolist()
            if cut + stalled + diverged >= max(1.0, SHARE * samples):
                parts.append(
                    f"{equation} solves left {(cut + stalled + diverged) / samples:.0%} of the "
                    f"samples above the tolerance ({cut / samples:.0%} out of steps, "
                    f"{stalled / samples:.0%} stalled, {diverged / samples:.0%} diverged)"
                )
        if not parts:
            return None
        self._said = True
        return (
            f"note: {'; '.join(parts)}; more steps: --set equilibrium.forward_steps=N, "
            "equilibrium.backward_steps=N"
        )
