"""A solve taken one evaluation at a time, for callers with a stopping rule of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops.dtypes import check_state_dtype
from deq_kernels.ops.norms import norm
from deq_kernels.ops.termination import Counter, Status, Tables
from deq_kernels.solvers.base import Iteration, Solver
from deq_kernels.solvers.machinery.structure import State, Structure, evaluate
from deq_kernels.solvers.machinery.unsupported import refuse_recordings

S = TypeVar("S", bound=Solver)

NEVER = -1.0
"""An absolute tolerance that no residual meets, not even zero."""


def without_tolerance(solver: S) -> S:
    """A copy of a solver whose caller says when a sample is done, which no residual of its is.

    Not one of zero either: where f couples samples, a later one need not be zero. A step from there
    has length zero and no direction, so that it enters no inverse.
    """
    changed = replace(solver, rtol=0.0)
    # Users are refused a tolerance below 0, as it would only cost them their answer.
    object.__setattr__(changed, "atol", NEVER)
    return changed


def endless(kind: type[S], **options: Any) -> S:
    """A solver that leaves the end to its caller: a sample stops only where it diverges.

    Args:
        kind: of solver.
        options: of its own, and `max_steps`.
    """
    return without_tolerance(kind(stall_steps=None, divergence_factor=math.inf, **options))


@dataclass(frozen=True, slots=True)
class Visit:
    """One evaluation of f.

    Attributes:
        z: where f was evaluated, [B, d]; valid until the next evaluation.
        f_z: f(z), [B, d].
        residual: ‖f(z) − z‖₂, [B] float64, NaN where `judged` is False.
        f_norm: ‖f(z)‖₂, [B] float64.
        judged: samples that took part, [B] bool; not those that had stopped before.
        diverged: samples that have diverged by now, [B] bool.
    """

    z: Tensor
    f_z: Tensor
    residual: Tensor
    f_norm: Tensor
    judged: Tensor
    diverged: Tensor


class Walk:
    """Takes the steps of a solver whose steps need values of f alone.

    Samples stop by the solver's own rules, and the caller may stop at any time.

    Args:
        solver: its options; at most `max_steps` evaluations.
        f: map of states; see `Solver.__call__`.
        z0: where to start.
        keep_inverse: whether `inverse` will be asked for.

    Attributes:
        structure: how rows [B, d] are states.
        z: the next point to be evaluated, [B, d].
    """

    def __init__(
        self, solver: Solver, f: Callable[..., State], z0: State, *, keep_inverse: bool
    ) -> None:
        self.structure = Structure.of(z0, "z0")
        check_state_dtype(self.structure.dtype)
        refuse_recordings(z0)
        self._f = f
        self.z = self.structure.flatten(z0).clone(memory_format=torch.contiguous_format)
        self._state = self.structure.unflatten(self.z)
        self._visited = torch.empty_like(self.z)
        batch, device = self.structure.batch, self.structure.device
        self._tables = Tables.new(batch, solver.max_steps, device)
        iteration = Iteration(self.z, torch.empty_like(self.z), self._tables)
        self._step, self._finish = solver._prepare(iteration, keep_inverse)
        self._evaluations = 0

    @property
    def running(self) -> Tensor:
        """[B] bool: samples that have not stopped."""
        return self._tables.counters[:, Counter.STATUS] == Status.RUNNING

    def advance(self) -> Visit:
        """Evaluate f at `z` and take a step from there."""
        allow_cast = torch.is_autocast_enabled(self.structure.device.type)
        judged = self.running
        self._visited.copy_(self.z)
        cuda = self.structure.device.type == "cuda"
        with torch.cuda.device(self.structure.device) if cuda else nullcontext():
            f_z = evaluate(self._f, self._state, self.z)
            flat = self.structure.flatten(f_z, allow_cast=allow_cast)
            self._step(flat)
        residual = self._tables.trace[:, self._evaluations]
        self._evaluations += 1
        diverged = self._tables.counters[:, Counter.STATUS] == Status.DIVERGED
        return Visit(self._visited, flat, residual, norm(flat), judged, diverged)

    def inverse(self) -> InverseJacobian | None:
        """The estimate of (J − I)⁻¹ as it stands, where the solver builds one."""
        return self._finish()
