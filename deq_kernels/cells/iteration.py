"""One call of the op: what is iterated, and when it stops."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells.pattern import Pattern
from deq_kernels.ops import cells
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.termination import Tables
from deq_kernels.options import (
    Options,
    check_choice,
    check_count,
    check_damping,
    check_not_negative,
    check_number,
)
from deq_kernels.solvers import Solution
from deq_kernels.solvers.machinery.precision import visible_rtol

NORMS = {"rows": NormKind.ROWS, "l2": NormKind.TWO, "max": NormKind.MAX}


@dataclass(frozen=True, kw_only=True)
class Stopping(Options):
    """The step length and the stopping rule of one iteration.

    Args:
        max_steps: see `deq_kernels.Solver`, as for those that follow.
        rtol: relative tolerance.
        atol: absolute tolerance.
        stall_steps: evaluations without progress, or None.
        divergence_factor: growth of the residual that is refused.
        norm: "l2" or "max", over all elements of a sample, or "rows", of each row for itself.
        damping: λ.
        accelerate: whether steps look back on the two before.

    Raises:
        TypeError: accelerate is no bool.
        ValueError: an option is out of its range.
    """

    max_steps: int
    rtol: float
    atol: float
    stall_steps: int | None
    divergence_factor: float
    norm: str
    damping: float
    accelerate: bool

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_count("max_steps", self.max_steps)
        check_not_negative("rtol", self.rtol)
        check_not_negative("atol", self.atol)
        if self.stall_steps is not None:
            check_count("stall_steps", self.stall_steps)
        check_number("divergence_factor", self.divergence_factor, lambda x: x > 1, "above 1")
        check_choice("norm", self.norm, NORMS)
        check_damping(self.damping)
        if not isinstance(self.accelerate, bool):
            raise TypeError(f"accelerate must be True or False; got {self.accelerate!r}.")


def steps_alone(steps: int, damping: float) -> Stopping:
    """For iterations that end after a number of steps, whatever comes out."""
    return Stopping(
        max_steps=steps,
        rtol=0.0,
        atol=0.0,
        stall_steps=None,
        divergence_factor=float("inf"),
        norm="l2",
        damping=damping,
        accelerate=False,
    )


@dataclass(frozen=True, slots=True)
class LinearMap:
    """z ↦ S (c ⊙ z) Vᵀ, the linear part of a cell.

    Attributes:
        weight: V, [n, n].
        pattern: the places of S; None for the identity, where each row is a sample.
        values: those of S, [nnz], in the order of `pattern.rows`; None without a pattern.
        scale: c, [N, n]; None for ones.
    """

    weight: Tensor
    pattern: Pattern | None = None
    values: Tensor | None = None
    scale: Tensor | None = None


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Autocast off for the device of x: it would change dtypes under the op's reference."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def iterate(
    linear: LinearMap,
    bias: Tensor,
    start: Tensor | None,
    *,
    activation: Activation = Activation.IDENTITY,
    stopping: Stopping,
    fixed_steps: bool = False,
) -> Solution:
    """z ← z + λ (φ(S (c ⊙ z) Vᵀ + b) − z) from `start`, each sample until it stops.

    Args:
        linear: S, c and V.
        bias: b, [N, n].
        start: [N, n], not modified; None for zeros.
        activation: φ.
        stopping: when.
        fixed_steps: take all `max_steps`, and return the last iterate instead of the best one.
    """
    pattern = linear.pattern
    batch = len(bias) if pattern is None else len(pattern.graphs)
    if start is None:
        z = torch.zeros_like(bias, memory_format=torch.contiguous_format)
    else:
        z = start.clone(memory_format=torch.contiguous_format)
    tables = Tables.new(batch, stopping.max_steps, z.device)
    with without_autocast(z):
        rtol = visible_rtol(stopping.rtol, z.dtype, z.device.type)
        cells.iterate_(
            z,
            tables,
            linear.weight,
            bias,
            scale=linear.scale,
            crow=None if pattern is None else pattern.rows.crow,
            col=None if pattern is None else pattern.rows.col,
            values=linear.values,
            sample_ptr=None if pattern is None else pattern.graphs.ptr,
            activation=activation,
            rtol=rtol,
            atol=stopping.atol,
            damping=stopping.damping,
            norm=NORMS[stopping.norm],
            stall_steps=stopping.stall_steps or 0,
            divergence_factor=stopping.divergence_factor,
            fixed_steps=fixed_steps,
            accelerate=stopping.accelerate,
        )
    return Solution(z, tables, 0, rtol=rtol, atol=stopping.atol)


ONE_STEP = steps_alone(1, 1.0)


def step_from(z: Tensor, linear: LinearMap, bias: Tensor, activation: Activation) -> Tensor:
    """φ(S (c ⊙ z) Vᵀ + b), [N, n]. One step of the op, so that no row's bits depend on the others.

    Args:
        z: [N, n], not modified.
        linear: S, c and V.
        bias: b, [N, n].
        activation: φ.
    """
    solution = iterate(linear, bias, z, activation=activation, stopping=ONE_STEP, fixed_steps=True)
    assert isinstance(solution.z, Tensor)
    return solution.z
