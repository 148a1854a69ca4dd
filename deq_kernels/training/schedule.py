"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

import math

FINAL_LEARNING_RATE = 1e-6


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
