"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deq_zoo.config import TrainingConfig

FINAL_LEARNING_RATE = 1e-6


def learning_rate(
    config: TrainingConfig, step: int, *, total_steps: int, steps_per_epoch: int
) -> float:
    """Of optimiser step `step` (0, 1, ..., total_steps - 1) of a run.

    In the first `warmup_steps` steps the schedule's rate is multiplied by
    (step + 1) / warmup_steps; the cosine begins where they end.

    Raises:
        ValueError: `step` lies outside the run.
    """
    warmup, initial = min(config.warmup_steps, total_steps - 1), config.learning_rate
    if step < warmup:
        return initial * (step + 1) / warmup
    if config.schedule == "cosine":
        return cosine_learning_rate(
            step - warmup, total_steps=total_steps - warmup, initial=initial
        )
    epoch = step // steps_per_epoch
    passed = sum(epoch >= decay for decay in config.decay_epochs)
    return initial * config.decay_factor**passed


def cosine_learning_rate(step: int, *, total_steps: int, initial: float) -> float:
    """Learning rate of optimiser step `step` (0, 1, ..., total_steps - 1).

        final + (initial - final) * (1 + cos(pi * step / total_steps)) / 2,   final = 1e-6

    Raises:
        ValueError: `step` lies outside the schedule, or `initial` is below 1e-6.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must lie in [0, total_steps = {total_steps}), got {step}")
    if initial < FINAL_LEARNING_RATE:
        raise ValueError(f"the cosine ends at {FINAL_LEARNING_RATE}, got initial = {initial}")
    share = (1.0 + math.cos(math.pi * step / total_steps)) / 2.0
    return FINAL_LEARNING_RATE + (initial - FINAL_LEARNING_RATE) * share
