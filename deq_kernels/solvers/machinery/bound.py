"""The shared loop for solvers whose steps need to know the map that is being solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch

from deq_kernels.inverse import InverseJacobian
from deq_kernels.solvers.base import Iteration, Solver
from deq_kernels.solvers.machinery.loop import StepFunction
from deq_kernels.solvers.machinery.structure import State
from deq_kernels.solvers.solution import Solution

Prepare: TypeAlias = Callable[
    [Iteration, bool], tuple[StepFunction, Callable[[], InverseJacobian | None]]
]
"""What `Solver._prepare` does, as a function."""


@dataclass(frozen=True, kw_only=True)
class _Bound(Solver):
    """A solver for one solve: its steps may hold on to the map."""

    prepare: Prepare

    def _prepare(
        self, iteration: Iteration, keep_inverse: bool
    ) -> tuple[StepFunction, Callable[[], InverseJacobian | None]]:
        return self.prepare(iteration, keep_inverse)


def solve_with(
    options: Solver, f: Callable[..., State], z0: State, prepare: Prepare, *, keep_inverse: bool
) -> Solution:
    """Solve z = f(z) with the stopping options of `options` and the steps that `prepare` makes."""
    bind = _bind
    if torch.compiler.is_dynamo_compiling():
        bind = torch.compiler.disable(_bind, reason="a solve is a loop on values")
    return bind(options, prepare)(f, z0, keep_inverse=keep_inverse)


def _bind(options: Solver, prepare: Prepare) -> Solver:
    shared = {field.name: getattr(options, field.name) for field in fields(Solver)}
    return _Bound(**shared, prepare=prepare)
