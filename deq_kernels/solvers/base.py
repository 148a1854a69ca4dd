"""What all solvers share: their stopping options, and the loop around one op per step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops.dtypes import check_state_dtype
from deq_kernels.ops.termination import Tables
from deq_kernels.solvers.solution import Solution
from deq_kernels.solvers.structure import State, Structure, evaluate

StepFunction = Callable[[Tensor], None]


@dataclass(frozen=True, slots=True)
class Iteration:
    """The tensors one solve works on: the iterates, the best ones, and the termination tables."""

    z: Tensor
    best_z: Tensor
    tables: Tables


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A fixed-point solver for z = f(z): options now, `solver(f, z0)` as often as wanted.

    Args:
        max_steps: largest number of evaluations of f, the one at z0 included.
        rtol: a sample has converged when ‖f(z) − z‖₂ ≤ atol + rtol ‖f(z)‖₂.
        atol: see rtol.
        stall_steps: a sample has stalled when its best residual has not fallen by 1 % within this
            many evaluations; None for never.
        divergence_factor: a residual above this times the sample's first one is rejected like one
            that is not finite.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is unknown.
    """

    max_steps: int = 50
    rtol: float = 1e-4
    atol: float = 0.0
    stall_steps: int | None = 30
    divergence_factor: float = 1e6

    builds_inverse: ClassVar[bool] = False
    """Whether the solution carries an inverse Jacobian estimate."""

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            check_option(name, value, math.isfinite(value) and value >= 0, "finite and at least 0")
        if self.stall_steps is not None:
            check_count("stall_steps", self.stall_steps)
        factor = self.divergence_factor
        check_option("divergence_factor", factor, factor > 1, "above 1")

    def __call__(
        self, f: Callable[..., State], z0: State, *, keep_inverse: bool = True
    ) -> Solution:
        """Solve z = f(z) from z0, each sample by itself.

        f runs without autograd; attach a gradient with `deq_kernels.DEQ`. The z it receives is a
        buffer that the next step overwrites: clone what should outlive the call.

        Args:
            f: map of states [B, ...] to states of the same structure, shape, dtype and device.
            z0: initial state, a tensor [B, ...] or a tuple of tensors with one batch size;
                float64, float32, float16 or bfloat16. Not modified.
            keep_inverse: leave `inverse_jacobian` in the solution, where the solver builds one.
                Without it the last pass over the history is spared, and its memory freed.

        Returns:
            The best iterate of each sample, with its status, steps, residual and trace.

        Raises:
            TypeError: z0 or f(z) has a wrong structure, dtype or device.
            ValueError: z0 or f(z) has a wrong shape.
            RuntimeError: f changed its z in place.
        """
        structure = Structure.of(z0, "z0")
        check_state_dtype(structure.dtype)
        # Inference tensors count no changes, which `evaluate` relies on.
        with torch.inference_mode(False), torch.no_grad():
            z = structure.flatten(z0).clone(memory_format=torch.contiguous_format)
            tables = Tables.new(structure.batch, self.max_steps, structure.device)
            iteration = Iteration(z, torch.empty_like(z), tables)
            step, finish = self._prepare(iteration, keep_inverse)
            iterate(f, structure, iteration, step, self.max_steps)
            inverse = finish() if keep_inverse else None
            return Solution(structure.unflatten(iteration.best_z), tables, inverse)

    def _prepare(
        self, iteration: Iteration, keep_inverse: bool
    ) -> tuple[StepFunction, Callable[[], InverseJacobian | None]]:
        """The step taken from each f(z) [B, d], and what makes the inverse estimate at the end."""
        raise NotImplementedError


def check_option(name: str, value: object, holds: bool, contract: str) -> None:
    """Raise ValueError unless the contract on an option holds."""
    if not holds:
        raise ValueError(f"{name} must be {contract}; got {value!r}.")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless an option is a whole number, at least 1."""
    holds = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    check_option(name, value, holds, "a whole number, at least 1")


def iterate(
    f: Callable[..., State],
    structure: Structure,
    iteration: Iteration,
    step: StepFunction,
    max_steps: int,
) -> None:
    """Evaluate f and take a step until no sample runs any more."""
    if structure.batch == 0:
        return
    z, active = iteration.z, iteration.tables.active
    state = structure.unflatten(z)
    allow_cast = torch.is_autocast_enabled(structure.device.type)
    for _ in range(max_steps):
        step(structure.flatten(evaluate(f, state, z), allow_cast=allow_cast))
        if not active.item():
            return
