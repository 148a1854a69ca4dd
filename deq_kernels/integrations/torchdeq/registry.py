"""Entries of torchdeq's table of solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deq_kernels.integrations.torchdeq.own_solvers import OWN_SOLVERS
from deq_kernels.integrations.torchdeq.solvers import SAME_SOLVERS
from deq_kernels.optional import optional_import

_replaced: dict[str, Callable[..., Any]] = {}
"""torchdeq's solvers whose names are ours now."""


def register() -> None:
    """Make the solvers of this package available under torchdeq's registry.

    `broyden`, `anderson` and `fixed_point_iter` take the place of torchdeq's own, and `dk_broyden`,
    `dk_anderson`, `dk_fixed_point`, `dk_adjoint_broyden`, `dk_lbfgs` and `dk_gmres` come with it.
    Layers made from now on use them; those made before keep what they have. Registering twice
    changes nothing.

    Raises:
        ImportError: torchdeq is not installed.
    """
    solver = _torchdeq_solver()
    for name, function in (SAME_SOLVERS | OWN_SOLVERS).items():
        present = solver._solvers.get(name)
        if present is function:
            continue
        if present is not None:
            _replaced[name] = present
        solver.register_solver(name, function)


def unregister() -> None:
    """Give torchdeq its own solvers back, and take the others out of its registry.

    Entries that were changed after `register` stay. Layers keep the solvers they were made with.

    Raises:
        ImportError: torchdeq is not installed.
    """
    solver = _torchdeq_solver()
    for name, function in (SAME_SOLVERS | OWN_SOLVERS).items():
        before = _replaced.pop(name, None)
        if solver._solvers.get(name) is not function:
            continue
        if before is None:
            del solver._solvers[name]
        else:
            solver.register_solver(name, before)


def _torchdeq_solver() -> Any:
    with optional_import(extra="bench"):
        import torchdeq.solver as solver
    return solver
