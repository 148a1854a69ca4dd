"""What a structured cell does with its solves: the choices of `DEQ(on_solve=...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor

from deq_kernels.gradients.watch import Choice, Equation, Watch, check_on_solve
from deq_kernels.solvers import Solution

CellOnSolve: TypeAlias = Choice | Callable[[Solution], object]
"""See `deq_kernels.cells.solve_dense`."""


def watch_of(on_solve: CellOnSolve, owner: str) -> Watch:
    """Who is told of the solves of one call of a function called `owner`.

    Raises:
        TypeError: `on_solve` is none of the choices, and not callable.
    """
    check_on_solve(on_solve)
    if not callable(on_solve):
        return Watch(on_solve, set(), owner=owner, how_often="")

    def hear(solution: Solution, equation: Equation) -> None:
        if equation == "forward":
            on_solve(handed_out(solution))

    return Watch(hear, set(), owner=owner)


def handed_out(solution: Solution) -> Solution:
    """The solution for a user's function: detached, and with the evaluations counted."""
    assert isinstance(solution.z, Tensor)
    # A copy, as the solution's own z goes on into autograd. The sum stays on the device: the host
    # does not wait for the solve.
    return replace(solution, z=solution.z.detach().clone(), rows=solution.steps.sum())
