"""Anderson acceleration as torchdeq and locuslab/deq define it: with an absolute ridge.

`deq_kernels.Anderson` takes its ridge relative to ‖r‖², which does not slow the last digits down;
those who replace another solver expect that solver's iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype, check_state_dtype
from deq_kernels.ops.termination import squared_norm
from deq_kernels.options import check_count, check_damping, check_not_negative, check_option
from deq_kernels.solvers.rows import Rows
from deq_kernels.solvers.structure import State, Structure, evaluate
from deq_kernels.solvers.walk import Visit

SINGULAR_SHARE = 1e-15
"""A pivot below this share of its diagonal entry leaves no digits in the weights."""


def anderson_visits(
    f: Callable[..., State],
    z0: State,
    *,
    history_length: int,
    ridge: float,
    damping: float,
    evaluations: int,
) -> Iterator[Visit]:
    """Evaluations of z_k = (1 − β) Σ a_i z_i + β Σ a_i f(z_i), after z0 and f(z0).

    The weights minimise ‖Σ a_i r_i‖² + λ ‖a‖² with Σ a_i = 1 over the last m evaluations, each
    sample by itself: (G + λ I) y = 1, a = y / Σ y with G_ij = ⟨r_i, r_j⟩, in float64. One row of G
    is new in each step. Where the system is singular the sample takes the damped step.

    A sample whose residual is not finite has diverged: it stays where it was before.

    Args:
        f: map of states.
        z0: a tensor [B, ...].
        history_length: m, at least 2.
        ridge: λ, at least 0.
        damping: β.
        evaluations: how many, at most; at least two are made.

    Raises:
        ValueError: an option is out of its range.
    """
    check_count("m", history_length)
    check_option("m", history_length, history_length >= 2, "at least 2")
    check_not_negative("lam", ridge)
    check_damping(damping)
    structure = Structure.of(z0, "x0")
    check_state_dtype(structure.dtype)
    accum = accumulate_dtype(structure.dtype)
    z = structure.flatten(z0).clone(memory_format=torch.contiguous_format)
    batch = structure.batch
    images, residuals = (Rows(z, history_length, accum) for _ in range(2))
    gram = torch.zeros(batch, history_length, history_length, dtype=torch.float64, device=z.device)
    diverged = torch.zeros(batch, dtype=torch.bool, device=z.device)
    full = torch.zeros(batch, dtype=torch.int64, device=z.device)
    everyone = torch.ones_like(diverged)
    for k in range(max(2, evaluations)):
        judged = ~diverged
        f_z = structure.flatten(
            evaluate(f, structure.unflatten(z), z),
            allow_cast=torch.is_autocast_enabled(z.device.type),
        )
        r = f_z.to(accum) - z.to(accum)
        norm, f_norm = squared_norm(r).sqrt(), squared_norm(f_z).sqrt()
        diverged = diverged | ~(norm.isfinite() & f_norm.isfinite())
        yield Visit(z, f_z, torch.where(judged, norm, torch.nan), f_norm, judged, diverged)
        usable = (~diverged)[:, None]
        slot, count = k % history_length, min(k + 1, history_length)
        r = torch.where(usable, r, 0.0)
        images.put(full + slot, torch.where(usable, f_z.to(accum), 0.0), everyone)
        residuals.put(full + slot, r, everyone)
        column = residuals.dots(full + count, r)[:, :history_length]
        gram[:, slot], gram[:, :, slot] = column, column
        moved = f_z.to(accum) - (1.0 - damping) * r
        if k == 0:
            moved = f_z.to(accum)  # the first step is not damped
        else:
            weights, solved = _weights(gram[:, :count, :count], ridge)
            padded = torch.nn.functional.pad(weights, (0, history_length - count))
            mixed = images.combine(full + count, padded, r, 0.0)
            if damping != 1.0:
                mixed -= (1.0 - damping) * residuals.combine(full + count, padded, r, 0.0)
            moved = torch.where(solved[:, None], mixed, moved)
        z = torch.where(usable, moved.to(z.dtype), z)


def _weights(gram: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """a [batch, n] with Σ a = 1, and where it could be found, by LDLᵀ in elementwise operations."""
    n = gram.shape[1]
    matrix = gram + ridge * torch.eye(n, dtype=gram.dtype, device=gram.device)
    diagonal = matrix.diagonal(dim1=1, dim2=2).clone()
    solved = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    right = torch.ones_like(diagonal)
    for i in range(n):
        pivot = matrix[:, i, i].clone()
        solved &= pivot > SINGULAR_SHARE * diagonal[:, i]
        factor = matrix[:, i + 1 :, i] / pivot[:, None]
        right[:, i + 1 :] -= factor * right[:, i, None]
        matrix[:, i + 1 :, i + 1 :] -= factor[:, :, None] * matrix[:, i, None, i + 1 :]
    for i in reversed(range(n)):
        right[:, i] /= matrix[:, i, i]
        right[:, :i] -= matrix[:, :i, i] * right[:, i, None]
    total = sum(right.unbind(1), torch.zeros_like(right[:, 0]))
    weights = right / total[:, None]
    solved &= weights.isfinite().all(dim=1)
    return torch.where(solved[:, None], weights, 0.0), solved
