"""The one call of the op: what is iterated, and until when."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells.pattern import Pattern
from deq_kernels.ops import cells
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.limits import Limits
from deq_kernels.ops.termination import Tables


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
    start: Tensor,
    *,
    limits: Limits,
    damping: float = 1.0,
    activation: Activation = Activation.IDENTITY,
    norm: NormKind = NormKind.TWO,
    accelerate: bool = False,
    fixed_steps: bool = False,
) -> tuple[Tensor, Tables]:
    """z ← z + λ (φ(S (c ⊙ z) Vᵀ + b) − z) from `start`, each sample until it stops.

    Args:
        linear: S, c and V.
        bias: b, [N, n].
        start: [N, n], not modified.
        limits: when a sample stops.
        damping: λ.
        activation: φ.
        norm: what tolerances are of.
        accelerate: whether steps look back on those before.
        fixed_steps: take all `max_steps`, and return the last iterate instead of the best one.

    Returns:
        Each sample's best iterate, [N, n], and the record of its steps.
    """
    pattern = linear.pattern
    batch = len(bias) if pattern is None else len(pattern.graphs)
    z = start.clone(memory_format=torch.contiguous_format)
    tables = Tables.new(batch, limits.max_steps, z.device)
    with without_autocast(z):
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
            rtol=limits.rtol,
            atol=limits.atol,
            damping=damping,
            norm=norm,
            stall_steps=limits.stall_steps,
            divergence_factor=limits.divergence_factor,
            fixed_steps=fixed_steps,
            accelerate=accelerate,
        )
    return z, tables


def take_steps(
    linear: LinearMap,
    bias: Tensor,
    start: Tensor,
    steps: int = 1,
    *,
    damping: float = 1.0,
    activation: Activation = Activation.IDENTITY,
) -> Tensor:
    """The iterate after so many damped steps, whatever comes out, [N, n]; see `iterate`.

    One step with λ = 1 is φ(S (c ⊙ z) Vᵀ + b). By the op, so that no row's bits depend on others.
    """
    z, _ = iterate(
        linear,
        bias,
        start,
        limits=Limits(steps),
        damping=damping,
        activation=activation,
        fixed_steps=True,
    )
    return z
