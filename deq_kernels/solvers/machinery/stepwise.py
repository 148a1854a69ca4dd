"""A solve taken one evaluation at a time, for callers with a stopping rule of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from deq_kernels.ops.norms import norm
from deq_kernels.ops.termination import Counter, Status
from deq_kernels.solvers.base import Solver, without_tolerance
from deq_kernels.solvers.machinery.structure import State
from deq_kernels.solvers.machinery.unsupported import structure_of_start

S = TypeVar("S", bound=Solver)


def never_done(kind: type[S], **options: Any) -> S:
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


class StepwiseSolve:
    """Takes the steps of an `interruptible` solver.

    Samples stop by the solver's own rules, and the caller may stop at any time.

    Args:
        solver: its options; at most `max_steps` evaluations.
        f: map of states; see `Solver.__call__`.
        z0: where to start.
        keep_inverse: whether `inverse` will be asked for.

    Attributes:
        z: the next point to be evaluated, [B, d].
        inverse: makes the estimate of (J − I)⁻¹ as it stands, or None.
    """

    def __init__(
        self, solver: Solver, f: Callable[..., State], z0: State, *, keep_inverse: bool
    ) -> None:
        assert solver.interruptible
        structure = structure_of_start(z0, "z0")
        iteration, self._step, self.inverse = solver._begin(f, z0, structure, keep_inverse)
        self.z, self._tables = iteration.z, iteration.tables
        self._evaluation = iteration.evaluation
        self._visited = torch.empty_like(self.z)
        self._evaluations = 0

    @property
    def running(self) -> Tensor:
        """[B] bool: samples that have not stopped."""
        return self._tables.counters[:, Counter.STATUS] == Status.RUNNING

    def advance(self) -> Visit:
        """Evaluate f at `z` and take a step from there."""
        judged, device = self.running, self.z.device
        self._visited.copy_(self.z)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            f_z = self._evaluation()
            self._step(f_z)
        residual = self._tables.trace[:, self._evaluations]
        self._evaluations += 1
        diverged = self._tables.counters[:, Counter.STATUS] == Status.DIVERGED
        return Visit(self._visited, f_z, residual, norm(f_z), judged, diverged)
