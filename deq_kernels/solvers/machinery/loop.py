"""The loop around one op per step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from deq_kernels.ops.termination import Counter, Tables
from deq_kernels.solvers.machinery.capture import step_capture
from deq_kernels.solvers.machinery.compaction import CompactEvaluation, PerSample
from deq_kernels.solvers.machinery.ranks import Ranks, check_equal_steps
from deq_kernels.solvers.machinery.running import RunningCount, running_count
from deq_kernels.solvers.machinery.structure import OutputError, State, Structure, evaluate

StepFunction = Callable[[Tensor], None]
"""One step of every running sample, from f(z) [B, d]."""

LookBack = Callable[[Tensor, int], None]
"""Looks at the last f(z) [B, d], at the end of a solve of so many evaluations."""

Advance = Callable[[], None]
"""Evaluates f and takes a step."""


def iterate(
    f: Callable[..., State],
    structure: Structure,
    z: Tensor,
    tables: Tables,
    step: StepFunction,
    max_steps: int,
    *,
    cuda_graph: bool = False,
    compact: bool = False,
    synchronized: Ranks = False,
    look_back: LookBack | None = None,
) -> int:
    """Evaluate f at z [B, d] and take a step until no sample runs any more.

    Args:
        f: map of states of the given structure; a `PerSample` for `compact`.
        structure: how z is a state.
        z: the iterates, which `step` updates.
        tables: statuses, and how many samples still run, which `step` updates.
        step: see `StepFunction`.
        max_steps: largest number of evaluations.
        cuda_graph: capture the second evaluation with its step, and replay it from then on.
        compact: evaluate f on the samples that still run.
        synchronized: whose samples are waited for.
        look_back: called at the end, unless f was evaluated on a part of the samples.

    Returns:
        How many rows f was evaluated on, all evaluations together.

    Raises:
        OutputError: f changed its z in place, or returned what is no state of the structure.
        RuntimeError: f could not be captured.
        ValueError: other ranks solve with another `max_steps`.
    """
    if structure.batch == 0 and synchronized is False:
        return 0
    if synchronized is not False:
        check_equal_steps(synchronized, max_steps, structure.device)
    rows: CompactEvaluation | None = None
    if compact:
        assert isinstance(f, PerSample)
        rows = CompactEvaluation(f, structure, z, tables.counters[:, Counter.STATUS])
        evaluation = rows.__call__
    else:
        state = structure.views(z)
        allow_cast = torch.is_autocast_enabled(structure.device.type)

        def evaluation() -> Tensor:
            return structure.flatten(evaluate(f, state, z), allow_cast=allow_cast)

    number = 0
    last: Tensor | None = None

    def advance() -> None:
        nonlocal number, last
        number += 1
        last = None  # so that f does not work beside it
        try:
            f_z = evaluation()
        except BaseException as error:
            _name(error, number, structure.batch if rows is None else rows.rows, structure.batch)
            raise
        step(f_z)
        if look_back is not None:
            last = f_z

    with ExitStack() as contexts:
        if structure.device.type == "cuda":
            contexts.enter_context(torch.cuda.device(structure.device))
        count = contexts.enter_context(running_count(tables.active, synchronized))
        capture = None
        if cuda_graph:
            capture = contexts.enter_context(step_capture(structure.device))
        narrow = None if rows is None else rows.narrow
        taken = repeat(advance, count, max_steps, capture, narrow)
        if look_back is not None and last is not None and rows is None:
            look_back(last, taken)
    return taken * structure.batch if rows is None else rows.rows_evaluated


def repeat(
    advance: Advance,
    count: RunningCount,
    max_steps: int,
    capture: Callable[[Advance], Advance] | None,
    narrow: Callable[[int], None] | None = None,
) -> int:
    """Advance until `count` knows of no running sample, and at most `max_steps` times.

    The first step is taken as it is; where there is a `capture`, it makes what takes the others.
    `narrow` is told how many samples may still run, before they go on.

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


def _name(error: BaseException, number: int, rows: int, batch: int) -> None:
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
