"""The op family `anderson`: one step of Anderson acceleration.

With r the residual and y = z + β r the damped image of z, the next iterate combines the images of
the last evaluations with the weights that make the combined residual smallest,

    z ← Σ a_i y_i = y − Σ γ_j δ_j,   a = argmin ‖Σ a_i r_i‖² + λ ‖a‖²,   Σ a_i = 1,

where δ_j and t_j are the changes of y and of r from one evaluation to the next, which is what is
stored (docs/algebra.md, section 4; Anderson 1965; Walker and Ni 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import registry, step
from deq_kernels.ops.anderson import arguments, reference
from deq_kernels.ops.dtypes import resolve_history_dtype
from deq_kernels.ops.memory import new_history
from deq_kernels.ops.termination import Tables
from deq_kernels.ops.tiles import tile_count

_STEP = registry.define(
    "anderson_step_(Tensor f_z, Tensor(a!) z, Tensor(b!) best_z, Tensor(c!) residual_changes, "
    "Tensor(d!) image_changes, Tensor(e!) last_residual, Tensor(f!) algebra, Tensor(g!) record, "
    "Tensor(h!) counters, Tensor(i!) active, Tensor(j!) scratch, float rtol, float atol, "
    "float damping, float regularization, int stall_steps, float divergence_factor) -> ()",
    reference=reference.step_,
    check=arguments.check_step,
    fake=registry.in_place_fake,
)


@dataclass(frozen=True, slots=True)
class Window:
    """What one Anderson solve stores: the changes between the last evaluations, and their table.

    A window of m evaluations holds m − 1 changes, each sample's in a ring: with n evaluations
    since its window was last empty (`Counter.COUNT`), change n − 1 is the newest, in slot
    (n − 1) mod (m − 1) once the next evaluation has completed it.

    Attributes:
        residual_changes: t_j times a power of two (`Norm.SCALE`) that keeps their dots in range,
            [batch, history_length − 1, dim]; rows are dense and may lie apart (`new_history`).
        image_changes: δ_j, likewise; in the slot of a change that is not complete yet, the
            correction −Σ γ_j δ_j of the step that began it.
        last_residual: r of the last evaluation, [batch, dim], in the state's dtype.
        algebra: [batch, history_length − 1, 2 (history_length − 1)] float64; row j holds
            ⟨t_j, t_i⟩, as stored, for all slots i, then room for the factorisation.
        scratch: [batch, tiles + 1, 2 history_length] float64, partial sums of a step; the tile is
            the device's (`deq_kernels.ops.tiles`).
    """

    residual_changes: Tensor
    image_changes: Tensor
    last_residual: Tensor
    algebra: Tensor
    scratch: Tensor

    @classmethod
    def new(cls, z: Tensor, history_length: int, history_dtype: torch.dtype | None) -> Window:
        """An empty window of `history_length` evaluations for states like z [batch, dim]."""
        batch, dim = z.shape
        capacity, tiles = history_length - 1, tile_count(dim, z.device.type)
        table = partial(torch.empty, dtype=torch.float64, device=z.device)
        dtype = resolve_history_dtype(z.dtype, history_dtype)
        return cls(
            new_history(z, (batch, capacity, dim), dtype),
            new_history(z, (batch, capacity, dim), dtype),
            torch.empty_like(z),
            table((batch, capacity, 2 * capacity)),
            table((batch, tiles + 1, 2 + 2 * capacity)),
        )


def bind_step(
    z: Tensor,
    best_z: Tensor,
    window: Window,
    tables: Tables,
    *,
    rtol: float,
    atol: float,
    damping: float,
    regularization: float,
    stall_steps: int,
    divergence_factor: float,
) -> Callable[[Tensor], None]:
    """`step_` as a function of f(z) alone, for a solver's loop; arguments as there."""
    changes = (window.residual_changes, window.image_changes, window.last_residual)
    record = (tables.record, tables.counters, tables.active, window.scratch)
    options = (rtol, atol, damping, regularization, stall_steps, divergence_factor)
    arguments = (z, best_z, *changes, window.algebra, *record, *options)
    return step.bind_step(_STEP.call, z, arguments)


def step_(
    f_z: Tensor, z: Tensor, best_z: Tensor, window: Window, tables: Tables, **options: Any
) -> None:
    """One whole step of Anderson acceleration from f(z), for every sample that still runs.

    Forms r = f(z) − z, judges it (`deq_kernels.ops.termination`), keeps z where it is the best so
    far, completes the newest changes and their row of the Gram matrix, solves for the weights γ
    and moves z ← z + β r − Σ γ_j δ_j. A sample that stops is not moved, and is skipped from then
    on; nothing of it is read or written.

    A change that depends linearly on newer ones, to rounding, gets no weight; where no change is
    left, or a weight is not finite, the step is the damped fixed-point step. No input raises.

    Args:
        f_z: f(z), [batch, dim]; any strides.
        z: the iterates, [batch, dim], contiguous; updated.
        best_z: the best iterate of each sample, [batch, dim]; updated.
        window: stored changes and their table; updated.
        tables: norms, counters, trace and the number of running samples, from `Tables.new`;
            updated.
        **options: those of `bind_step`, all of them:
            rtol, relative tolerance on ‖f(z) − z‖ against ‖f(z)‖;
            atol, absolute tolerance on ‖f(z) − z‖; below 0, and with rtol 0, none is met;
            damping, β;
            regularization, the ridge relative to the squared residual, λ / ‖r‖²;
            stall_steps, evaluations without progress after which a sample has stalled, 0: never;
            divergence_factor, growth over the first residual at which a step is rejected.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or layout (compiled kernels name it).
        TypeError: an option is missing or unknown.
    """
    bind_step(z, best_z, window, tables, **options)(f_z)
