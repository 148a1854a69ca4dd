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
from deq_kernels.solvers.loop import StepFunction, iterate
from deq_kernels.solvers.solution import Solution
from deq_kernels.solvers.structure import State, Structure


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
        cuda_graph: capture f with its step into a CUDA graph in the second step of every solve, and
            replay it from then on. Spares the launches from Python, which pays where a step takes
            the GPU less time than the CPU (small states, f of many small kernels) and a solve takes
            many more steps than the one or two that a capture costs. Only for CUDA states. f must
            only enqueue work, the same in every evaluation, and Python in it runs twice per solve,
            so that changes of z in place are noticed in the first two evaluations only. Device
            memory that f works in is kept for the thread's next solve (`deq_kernels.empty_cache`).

    Raises:
        ValueError: an option is out of its range.
        TypeError: an option is unknown.
    """

    max_steps: int = 50
    rtol: float = 1e-4
    atol: float = 0.0
    stall_steps: int | None = 30
    divergence_factor: float = 1e6
    cuda_graph: bool = False

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
        check_option("cuda_graph", self.cuda_graph, isinstance(self.cuda_graph, bool), "a bool")

    def __call__(
        self, f: Callable[..., State], z0: State, *, keep_inverse: bool = True
    ) -> Solution:
        """Solve z = f(z) from z0, each sample by itself.

        f runs without autograd; attach a gradient with `deq_kernels.DEQ`. The z it receives is a
        buffer that the next step overwrites: clone what should outlive the call.

        On a GPU the host does not wait for the solution, and learns one step late that no sample
        runs any more: f is evaluated once more then, but never more than `max_steps` times.

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
            ValueError: z0 or f(z) has a wrong shape, or z0 is not on a CUDA device as `cuda_graph`
                needs it.
            RuntimeError: f changed its z in place, or `cuda_graph` could not capture it; or the
                current stream is being captured into a graph of the caller's.
        """
        structure = Structure.of(z0, "z0")
        check_state_dtype(structure.dtype)
        if self.cuda_graph and structure.device.type != "cuda":
            raise ValueError(
                "cuda_graph=True needs a state on a CUDA device; got z0 on "
                f"{structure.device}. Move z0 and f to a GPU, or leave cuda_graph out."
            )
        # Inference tensors count no changes, which `evaluate` relies on.
        with torch.inference_mode(False), torch.no_grad():
            z = structure.flatten(z0).clone(memory_format=torch.contiguous_format)
            tables = Tables.new(structure.batch, self.max_steps, structure.device)
            iteration = Iteration(z, torch.empty_like(z), tables)
            step, finish = self._prepare(iteration, keep_inverse)
            iterate(
                f, structure, z, tables.active, step, self.max_steps, cuda_graph=self.cuda_graph
            )
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
