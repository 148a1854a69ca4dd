"""Warnings and errors about a layer's solves that left samples unconverged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from deq_kernels.notices import SolveError, UnconvergedWarning, heard_by, warn_user
from deq_kernels.ops import Status
from deq_kernels.solvers import Solution
from deq_kernels.solvers.machinery.deferred_reads import read_later

Equation: TypeAlias = Literal["forward", "adjoint", "tangent"]
"""z = f(z); w = Jᵀw + ℓ; and μ = Jμ + ċ, which second derivatives solve."""

Choice: TypeAlias = Literal["warn", "raise", "ignore"]
CHOICES: tuple[str, ...] = get_args(Choice)

OnSolve: TypeAlias = Choice | Callable[[Solution, Equation], object]
"""What is to happen after each solve; see `DEQ`."""

CHOICES_IN_WORDS = (
    'on_solve="raise" makes it an error, "ignore" silences it, and a function is called with every '
    "Solution."
)

FAILURES = (Status.MAX_STEPS, Status.STALLED, Status.DIVERGED)
"""What leaves a sample unconverged."""


def check_on_solve(on_solve: object) -> None:
    """Raise TypeError unless `on_solve` is one of the choices or callable."""
    if not (callable(on_solve) or (isinstance(on_solve, str) and on_solve in CHOICES)):
        raise TypeError(
            f"on_solve must be one of {', '.join(map(repr, CHOICES))}, or callable as "
            f"on_solve(solution, equation); got {on_solve!r}."
        )


class Watch:
    """Reports the unconverged solves of one layer.

    Args:
        on_solve: see `DEQ`.
        told: equations and categories that were warned of, each once; added to.
    """

    def __init__(self, on_solve: OnSolve, told: set[str]) -> None:
        self._on_solve = on_solve
        self._told = told

    @contextmanager
    def during(self, equation: Equation) -> Iterator[None]:
        """Report the solves inside of the block, in this thread, as those of `equation`."""
        token = _current.set((self, equation))
        try:
            with heard_by(self.tell):
                yield
        finally:
            _current.reset(token)

    def tell(self, category: type[Warning], message: str) -> None:
        """Warn, once for each category."""
        if category.__name__ not in self._told:
            self._told.add(category.__name__)
            warn_user(category, f"In a DEQ layer: {message}")

    def solved(self, solution: Solution, equation: Equation) -> None:
        """Do what the layer was asked to do with a solution."""
        if callable(self._on_solve):
            self._on_solve(solution, equation)
            return
        silent = self._on_solve == "ignore" or equation in self._told
        if (silent and self._on_solve != "raise") or not _may_fail(solution):
            return
        describe = partial(
            _message,
            equation=equation,
            batch=len(solution.status),
            rtol=solution.rtol,
            atol=solution.atol,
        )

        def judge(found: list[float]) -> None:
            *counts, residual = found
            if not sum(counts):
                return
            message = describe(counts, residual)
            if self._on_solve == "raise":
                raise SolveError(message)
            if equation not in self._told:
                self._told.add(equation)
                warn_user(UnconvergedWarning, f"{message} Said once per layer; {CHOICES_IN_WORDS}")

        if self._on_solve == "raise":
            judge(failures(solution).tolist())
        else:
            # On a GPU the answer is looked at when a later solve begins.
            read_later(failures(solution), judge)


_current: ContextVar[tuple[Watch, Equation] | None] = ContextVar("watch", default=None)


def report(solution: Solution) -> None:
    """Hand a solution to the `Watch` of the layer that is solved or differentiated, if any."""
    current = _current.get()
    if current is not None:
        watch, equation = current
        watch.solved(solution, equation)


def _may_fail(solution: Solution) -> bool:
    """Whether there is something to look at; True where the host would have to wait for it."""
    status = solution.status
    if type(status) is not Tensor:  # fake, or being recorded: there are no values
        return False
    # Small tables are read in a fraction of the time by NumPy, and most solves end here.
    return status.device.type != "cpu" or bool((status.numpy() != Status.CONVERGED).any())


def failures(solution: Solution) -> Tensor:
    """[4] float64: samples for each of `FAILURES`, and the largest residual among them.

    Where no tolerance was asked for, all steps were, and only what diverged has failed.
    """
    status = solution.status
    failed = [status == failure for failure in FAILURES]
    if solution.rtol == 0 and solution.atol == 0:
        failed[:2] = [torch.zeros_like(failed[0])] * 2
    any_failed = failed[0] | failed[1] | failed[2]
    residuals = torch.where(any_failed, solution.residual, 0.0)
    largest = residuals.amax() if len(residuals) else residuals.new_zeros(())
    return torch.stack([*(mask.sum() for mask in failed), largest])


def _message(
    counts: list[float],
    residual: float,
    *,
    equation: Equation,
    batch: int,
    rtol: float | None,
    atol: float | None,
) -> str:
    of_what = {
        "forward": "the forward solve",
        "adjoint": "the adjoint solve, which the gradient comes from,",
        "tangent": "the solve for a second derivative",
    }[equation]
    parts = [
        f"{int(count)} {failure.name.lower()}"
        for failure, count in zip(FAILURES, counts, strict=True)
        if count
    ]
    tolerance = ""
    if rtol is not None and atol is not None:
        tolerance = f" (rtol={rtol:.1e}, atol={atol:.1e})"
    whose = "the solver" if equation == "forward" else "the gradient's solver"
    return (
        f"In a DEQ layer: {of_what} left {int(sum(counts))} of {batch} samples unconverged: "
        f"{', '.join(parts)}; their residual is up to {residual:.1e}{tolerance}. Give {whose} more "
        "max_steps or a larger tolerance, take another one, or make the cell contract more."
    )
