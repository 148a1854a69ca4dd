"""The loop around one op per step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from deq_kernels.solvers.capture import step_capture
from deq_kernels.solvers.running import RunningCount, running_count
from deq_kernels.solvers.structure import State, Structure, evaluate

StepFunction = Callable[[Tensor], None]
"""One step of every running sample, from f(z) [B, d]."""

Advance = Callable[[], None]
"""Evaluates f and takes a step."""


def iterate(
    f: Callable[..., State],
    structure: Structure,
    z: Tensor,
    active: Tensor,
    step: StepFunction,
    max_steps: int,
    *,
    cuda_graph: bool,
) -> None:
    """Evaluate f at z [B, d] and take a step until no sample runs any more.

    Args:
        f: map of states of the given structure.
        structure: how z is a state.
        z: the iterates, which `step` updates.
        active: [1] int64, how many samples still run, which `step` updates.
        step: see `StepFunction`.
        max_steps: largest number of evaluations.
        cuda_graph: capture the second evaluation with its step, and replay it from then on.

    Raises:
        RuntimeError: f changed its z in place, or could not be captured.
    """
    if structure.batch == 0:
        return
    state = structure.unflatten(z)
    allow_cast = torch.is_autocast_enabled(structure.device.type)

    def advance() -> None:
        step(structure.flatten(evaluate(f, state, z), allow_cast=allow_cast))

    with ExitStack() as contexts:
        if structure.device.type == "cuda":
            contexts.enter_context(torch.cuda.device(structure.device))
        count = contexts.enter_context(running_count(active))
        capture = None
        if cuda_graph:
            capture = contexts.enter_context(step_capture(structure.device))
        repeat(advance, count, max_steps, capture)


def repeat(
    advance: Advance,
    count: RunningCount,
    max_steps: int,
    capture: Callable[[Advance], Advance] | None,
) -> None:
    """Advance until `count` knows of no running sample, and at most `max_steps` times.

    The first step is taken as it is; where there is a `capture`, it makes what takes the others.
    """
    for taken in range(1, max_steps + 1):
        if taken == 2 and capture is not None:
            advance = capture(advance)
        advance()
        if taken == max_steps or count.none_left():
            return
