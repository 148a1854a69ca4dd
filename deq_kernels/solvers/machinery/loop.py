"""The loop around one op per step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from deq_kernels.ops.termination import Tables
from deq_kernels.solvers.machinery.capture import step_capture
from deq_kernels.solvers.machinery.compaction import CompactEvaluation
from deq_kernels.solvers.machinery.evaluation import Evaluation
from deq_kernels.solvers.machinery.ranks import Ranks, check_equal_steps
from deq_kernels.solvers.machinery.running import RunningCount, running_count
from deq_kernels.solvers.machinery.structure import OutputError

StepFunction = Callable[[Tensor], None]
"""One step of every running sample, from f(z) [B, d]."""

LookBack = Callable[[Tensor, int], None]
"""Looks at the last f(z) [B, d], at the end of a solve of so many evaluations."""

Advance = Callable[[], None]
"""Evaluates f and takes a step."""


def iterate(
    evaluation: Evaluation,
    step: StepFunction,
    tables: Tables,
    *,
    cuda_graph: bool = False,
    synchronized: Ranks = False,
    look_back: LookBack | None = None,
) -> int:
    """Evaluate f and take a step until no sample runs any more, or the trace is full.

    Args:
        evaluation: f at the iterates; a `CompactEvaluation` learns which samples to leave out.
        step: moves the iterates.
        tables: statuses, and how many samples still run, which `step` updates.
        cuda_graph: capture the second evaluation with its step, and replay it from then on.
        synchronized: whose samples are waited for.
        look_back: called at the end, unless f was evaluated on a part of the samples.

    Returns:
        How many rows f was evaluated on, all evaluations together.

    Raises:
        OutputError: see `Evaluation`.
        RuntimeError: f could not be captured.
        ValueError: other ranks solve with another `max_steps`.
    """
    (batch, max_steps), device = tables.trace.shape, tables.trace.device
    if batch == 0 and synchronized is False:
        return 0
    if synchronized is not False:
        check_equal_steps(synchronized, max_steps, device)
    compact = evaluation if isinstance(evaluation, CompactEvaluation) else None
    number = 0
    last: Tensor | None = None

    def advance() -> None:
        nonlocal number, last
        number += 1
        last = None  # so that f does not work beside it
        try:
            f_z = evaluation()
        except BaseException as error:
            _name_evaluation(error, number, batch if compact is None else compact.rows, batch)
            raise
        step(f_z)
        if look_back is not None:
            last = f_z

    with ExitStack() as contexts:
        if device.type == "cuda":
            contexts.enter_context(torch.cuda.device(device))
        count = contexts.enter_context(running_count(tables.active, synchronized))
        capture = contexts.enter_context(step_capture(device)) if cuda_graph else None
        narrow = None if compact is None else compact.narrow
        taken = repeat(advance, count, max_steps, capture, narrow)
        if look_back is not None and last is not None and compact is None:
            look_back(last, taken)
    return taken * batch if compact is None else compact.rows_evaluated


def repeat(
    advance: Advance,
    count: RunningCount,
    max_steps: int,
    capture: Callable[[Advance], Advance] | None,
    narrow: Callable[[int], None] | None = None,
) -> int:
    """Advance until `count` knows of no running sample, and at most `max_steps` times.

    The first step is taken as it is; where there is a `capture`, it makes what takes the others.
    `narrow` is called with the number of samples that may still run, before each step.

    Returns:
        How often it advanced.
    """
    for taken in range(1, max_steps + 1):
        if taken == 2 and capture is not None:
            advance = capture(advance)
        advance()
        if taken == max_steps:
            break
        left = count.left()
        if left == 0:
            break
        if left is not None and narrow is not None:
            narrow(left)
    return taken


def _name_evaluation(error: BaseException, number: int, rows: int, batch: int) -> None:
    """Let what went wrong in an evaluation of f say which one it was, counted from 1.

    An error of ours says it in its message. One of f's own stays as it is, and gets a note where
    Python has them (3.11 and newer).
    """
    where = f"evaluation {number} of f in this solve"
    if rows < batch:
        where += (
            f", on {rows} of its {batch} samples: what f takes per sample has to be given to "
            "PerSample"
        )
    if isinstance(error, OutputError) and not error.where:
        error.where = where
    elif (add_note := getattr(error, "add_note", None)) is not None:
        add_note(f"Raised in {where}.")
