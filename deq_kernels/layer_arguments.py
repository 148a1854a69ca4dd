"""The kinds of arguments that a layer takes, each refused by name where it is of another."""

from __future__ import annotations

from deq_kernels.gradients import Gradient
from deq_kernels.gradients.watch import check_on_solve
from deq_kernels.options import check_kind
from deq_kernels.solvers import Solver


def check_arguments(
    cell: object,
    solver: object,
    gradient: object,
    eval_solver: object,
    warm_start: object,
    per_sample: object,
    on_solve: object,
) -> None:
    """Raise TypeError where an argument of `DEQ` is not of its kind.

    They come from packages that name solvers by strings, or are classes for want of brackets.
    """
    if not callable(cell):
        raise TypeError(
            f"cell must be callable, as cell(z, ...); got {cell!r}. Pass a module or a function."
        )
    for name, given in (("solver", solver), ("eval_solver", eval_solver)):
        if given is not None:
            check_kind(name, given, Solver, "dk.Broyden()")
    if gradient is not None:
        check_kind("gradient", gradient, Gradient, "dk.Implicit()")
    if not isinstance(warm_start, bool):
        raise TypeError(f"warm_start must be True or False; got {warm_start!r}.")
    if per_sample is not None:
        _check_per_sample(per_sample)
    check_on_solve(on_solve)


def _check_per_sample(per_sample: object) -> None:
    single = isinstance(per_sample, int | str)
    several = isinstance(per_sample, tuple | list) and all(
        isinstance(key, int | str) and not isinstance(key, bool) for key in per_sample
    )
    if single or not several:
        advice = f"Pass ({per_sample!r},)." if single else "Pass (0,) for the x of layer(z0, x)."
        raise TypeError(
            "per_sample must be a tuple of positions and names of the cell's arguments, or None; "
            f"got {per_sample!r}. {advice}"
        )
