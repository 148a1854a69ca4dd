"""The op family `broyden`: one solver step, and products with the inverse it builds.

The inverse estimate of J_r = J − I is kept in product form, one stored direction per step:

    H = (I + u_{r−1} p_{r−1}ᵀ / N_{r−1}) ⋯ (I + u_0 p_0ᵀ / N_0) H₀,   u_j = p_{j+1} + (α_j − 1) p_j

with H₀ = −γ I and N_j = ⟨p_j, p_j⟩ (docs/algebra.md, section 1; Kelley 1995, chapter 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import registry, step
from deq_kernels.ops.broyden import arguments, reference
from deq_kernels.ops.dtypes import resolve_history_dtype
from deq_kernels.ops.memory import new_history
from deq_kernels.ops.termination import Tables
from deq_kernels.ops.tiles import tile_count


def _matvec_fake(
    directions: Tensor,
    algebra: Tensor,
    rank: Tensor,
    x: Tensor,
    scale: float,
    transpose: bool,
) -> Tensor:
    return torch.empty_like(x)


_STEP = registry.define(
    "broyden_step_(Tensor f_z, Tensor(a!) z, Tensor(b!) best_z, Tensor(c!) directions, "
    "Tensor(d!) algebra, Tensor(e!) record, Tensor(f!) counters, Tensor(g!) active, "
    "Tensor(h!) scratch, float rtol, float atol, float damping, float gamma, int stall_steps, "
    "float divergence_factor, bool finish_inverse, bool drop_oldest, bool estimate_gamma, "
    "int max_backtracks) -> ()",
    reference=reference.step_,
    check=arguments.check_step,
    fake=registry.in_place_fake,
)
_MATVEC = registry.define(
    "broyden_matvec(Tensor directions, Tensor algebra, Tensor rank, Tensor x, float scale, "
    "bool transpose) -> Tensor",
    reference=reference.matvec,
    check=arguments.check_matvec,
    fake=_matvec_fake,
)


def _matvec_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *history, _, ctx.scale, ctx.transpose = inputs
    if any(tensor.requires_grad for tensor in history):
        raise NotImplementedError(
            "broyden_matvec is differentiable in x only; the history requires grad. "
            "Detach the directions and their table first."
        )
    ctx.save_for_backward(*history)


def _matvec_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _MATVEC.call(*ctx.saved_tensors, grad.contiguous(), ctx.scale, not ctx.transpose)
    return None, None, None, grad_x, None, None


torch.library.register_autograd(
    "deq_kernels::broyden_matvec",
    _matvec_backward,
    setup_context=_matvec_setup,
    lib=registry.LIBRARY,
)


@dataclass(frozen=True, slots=True)
class History:
    """What one Broyden solve stores: directions and their rank-sized tables.

    Attributes:
        directions: [batch, history_length + 1, dim], the first `count` rows of a sample valid, the
            others never read; rows are dense and may lie apart (`new_history`). Stored times a
            power of two per sample, `Norm.SCALE`, which products do not depend on.
        algebra: [batch, history_length + 1, history_length + 3] float64; row j holds ⟨p_j, p_i⟩
            for all i, then the step length α_j and the weight ω_j.
        scratch: [batch, tiles + 1, 2 + 2 (history_length + 1)] float64, partial sums of a step,
            laid out as the backend likes; the tile is the device's (`deq_kernels.ops.tiles`).
    """

    directions: Tensor
    algebra: Tensor
    scratch: Tensor

    @classmethod
    def new(cls, z: Tensor, history_length: int, history_dtype: torch.dtype | None) -> History:
        """An empty history for states like z [batch, dim]."""
        batch, dim = z.shape
        capacity, tiles = history_length + 1, tile_count(dim, z.device.type)
        table = partial(torch.empty, dtype=torch.float64, device=z.device)
        dtype = resolve_history_dtype(z.dtype, history_dtype)
        return cls(
            new_history(z, (batch, capacity, dim), dtype),
            table((batch, capacity, capacity + 2)),
            table((batch, tiles + 1, 2 + 2 * capacity)),
        )


def bind_step(
    z: Tensor,
    best_z: Tensor,
    history: History,
    tables: Tables,
    *,
    rtol: float,
    atol: float,
    damping: float,
    gamma: float,
    stall_steps: int,
    divergence_factor: float,
    finish_inverse: bool,
    drop_oldest: bool = False,
    estimate_gamma: bool = False,
    max_backtracks: int = 0,
) -> Callable[[Tensor], None]:
    """`step_` as a function of f(z) alone, for a solver's loop; arguments as there."""
    state = (z, best_z, history.directions, history.algebra)
    record = (tables.record, tables.counters, tables.active, history.scratch)
    options = (rtol, atol, damping, gamma, stall_steps, divergence_factor, finish_inverse)
    variants = (drop_oldest, estimate_gamma, max_backtracks)
    arguments = (*state, *record, *options, *variants)
    return step.bind_step(_STEP.call, z, arguments)


def step_(
    f_z: Tensor, z: Tensor, best_z: Tensor, history: History, tables: Tables, **options: Any
) -> None:
    """One whole step of good Broyden from f(z), for every sample that still runs.

    Forms r = f(z) − z, judges it (`deq_kernels.ops.termination`), keeps z where it is the best
    so far, finishes the newest factor, computes p = −H r, stores it and moves z ← z + α p. A
    sample that stops is not moved, and is skipped from then on; nothing of it is read or written.

    Args:
        f_z: f(z), [batch, dim]; any strides.
        z: the iterates, [batch, dim], contiguous; updated.
        best_z: the best iterate of each sample, [batch, dim]; updated.
        history: stored directions and their tables; updated.
        tables: norms, counters, trace and the number of running samples, from `Tables.new`;
            updated.
        **options: those of `bind_step`, all that have no default:
            rtol, relative tolerance on ‖f(z) − z‖ against ‖f(z)‖;
            atol, absolute tolerance on ‖f(z) − z‖; below 0, and with rtol 0, none is met;
            damping, the step length α;
            gamma, scale of the initial inverse, H₀ = −γ I;
            stall_steps, evaluations without progress after which a sample has stalled, 0: never;
            divergence_factor, growth over the first residual at which a step is rejected;
            finish_inverse, whether the last secant pair of a sample that stops still enters its
            inverse, at the cost of one more pass;
            drop_oldest, whether a full history loses its oldest factor instead of all of them;
            estimate_gamma, whether the second evaluation replaces γ by −⟨s, y⟩ / ⟨y, y⟩, once per
            sample (`deq_kernels.ops.broyden.initial_scale`);
            max_backtracks, how often a step is shortened at most, in evaluations of their own,
            until the residual is small enough (`deq_kernels.ops.broyden.line_search`); 0: never.

    Raises:
        RuntimeError: a tensor has the wrong shape, dtype or layout (compiled kernels name it).
        TypeError: an option is missing or unknown.
    """
    bind_step(z, best_z, history, tables, **options)(f_z)


def matvec(
    directions: Tensor,
    algebra: Tensor,
    rank: Tensor,
    x: Tensor,
    *,
    scale: float = -1.0,
    transpose: bool = False,
) -> Tensor:
    """H x (or Hᵀ x) with the product-form inverse, in two passes over the directions.

    Args:
        directions: [batch, history_length + 1, dim].
        algebra: [batch, history_length + 1, history_length + 3] float64, as in `History`.
        rank: factors of each sample, [batch] int64.
        x: right-hand sides, [batch, columns, dim], in the state's dtype.
        scale: H₀ = scale · I. A seeded product H₀ = M is had with scale 1: pass M x here for
            H x, and apply Mᵀ to the result for Hᵀ x.
        transpose: the left product Hᵀ x, as SHINE needs it (SHINE, equation 4).

    Returns:
        [batch, columns, dim], dtype of x. Differentiable in x.
    """
    return _MATVEC.call(directions, algebra, rank, x.contiguous(), scale, transpose)
