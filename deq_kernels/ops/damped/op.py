"""The op family `damped`: the damped fixed-point step, and the damped Neumann series.

Source: docs/algebra.md, section 3; PG, equations 16 and 17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import registry, step
from deq_kernels.ops.damped import arguments, reference
from deq_kernels.ops.termination import Tables
from deq_kernels.ops.tiles import tile_count

_STEP = registry.define(
    "damped_step_(Tensor f_z, Tensor(a!) z, Tensor(b!) best_z, Tensor(c!) record, "
    "Tensor(d!) counters, Tensor(e!) active, Tensor(f!) scratch, float rtol, float atol, "
    "float damping, int stall_steps, float divergence_factor) -> ()",
    reference=reference.step_,
    check=arguments.check_step,
    fake=registry.in_place_fake,
)
_NEUMANN = registry.define(
    "neumann_step_(Tensor vjp, Tensor cotangent, Tensor(a!) w, Tensor(b!) norms, "
    "float damping) -> ()",
    reference=reference.neumann_step_,
    check=arguments.check_neumann,
    fake=registry.in_place_fake,
)


def new_scratch(z: Tensor) -> Tensor:
    """Room for the partial sums of `step_` on states like z [batch, dim]."""
    batch, dim = z.shape
    shape = (batch, tile_count(dim, z.device.type) + 1, 2)
    return torch.empty(shape, dtype=torch.float64, device=z.device)


def bind_step(
    z: Tensor,
    best_z: Tensor,
    tables: Tables,
    scratch: Tensor,
    *,
    rtol: float,
    atol: float,
    damping: float,
    stall_steps: int,
    divergence_factor: float,
) -> Callable[[Tensor], None]:
    """`step_` as a function of f(z) alone, for a solver's loop; arguments as there."""
    record = (tables.record, tables.counters, tables.active, scratch)
    arguments = (z, best_z, *record, rtol, atol, damping, stall_steps, divergence_factor)
    return step.bind_step(_STEP.call, z, arguments)


def step_(
    f_z: Tensor, z: Tensor, best_z: Tensor, tables: Tables, scratch: Tensor, **options: Any
) -> None:
    """z ← z + λ (f(z) − z) for every sample that still runs, with norms, status and best iterate.

    Args:
        f_z: f(z), [batch, dim]; any strides.
        z: the iterates, [batch, dim], contiguous; updated.
        best_z: the best iterate of each sample, [batch, dim]; updated.
        tables: norms, counters, trace and the number of running samples, from `Tables.new`;
            updated.
        scratch: from `new_scratch`.
        **options: those of `bind_step`, all of them:
            rtol, relative tolerance on ‖f(z) − z‖ against ‖f(z)‖;
            atol, absolute tolerance on ‖f(z) − z‖; below 0, and with rtol 0, none is met;
            damping, λ;
            stall_steps, evaluations without progress after which a sample has stalled, 0: never;
            divergence_factor, growth over the first residual at which a sample has diverged.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or layout (compiled kernels name it).
        TypeError: an option is missing or unknown.
    """
    bind_step(z, best_z, tables, scratch, **options)(f_z)


def neumann_step_(
    vjp: Tensor, cotangent: Tensor, w: Tensor, norms: Tensor, *, damping: float
) -> None:
    """w ← λ (ℓ + Jᵀw) + (1 − λ) w in one pass (PG, equation 17).

    Args:
        vjp: Jᵀw at the present w, [batch, dim]; any strides, and rows of w itself.
        cotangent: ℓ, [batch, dim]; any strides.
        w: the accumulated adjoint, [batch, dim], contiguous; updated.
        norms: [batch, 2] float64; receives ‖w_new − w‖ and ‖w_new‖.
        damping: λ.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or layout (compiled kernels name it).
    """
    if w.data_ptr() <= vjp.data_ptr() < w.data_ptr() + w.nbytes:
        vjp = vjp.clone(memory_format=torch.contiguous_format)
    _NEUMANN.call(vjp.contiguous(), cotangent.contiguous(), w, norms, damping)
