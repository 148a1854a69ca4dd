"""Anderson acceleration as torchdeq and locuslab/deq define it: with an absolute ridge.

`deq_kernels.Anderson` takes its ridge relative to ‖r‖², which does not slow the last digits down;
those who replace another solver expect that solver's iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.norms import norm
from deq_kernels.options import check_count, check_damping, check_not_negative, check_option
from deq_kernels.solvers.machinery.stepwise import Visit
from deq_kernels.solvers.machinery.structure import State, evaluate
from deq_kernels.solvers.machinery.unsupported import structure_of_start
from deq_kernels.solvers.machinery.vectors import StoredVectors

LARGEST_WEIGHT = 1e8
"""Beyond it a combination with weights that sum to 1 has lost half of float64's digits."""


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
    sample by itself, from G_ij = ⟨r_i, r_j⟩ in float64; one row of G is new in each step. Where the
    system is singular, or nearly so, the sample takes the damped step.

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
    structure = structure_of_start(z0, "x0")
    accum = accumulate_dtype(structure.dtype)
    z = structure.flatten(z0).clone(memory_format=torch.contiguous_format)
    batch = structure.batch
    images, residuals = (StoredVectors(z, history_length, accum) for _ in range(2))
    gram = torch.zeros(batch, history_length, history_length, dtype=torch.float64, device=z.device)
    diverged = torch.zeros(batch, dtype=torch.bool, device=z.device)
    full = torch.zeros(batch, dtype=torch.int64, device=z.device)
    all_samples = torch.ones_like(diverged)
    for k in range(max(2, evaluations)):
        judged = ~diverged
        f_z = structure.flatten(
            evaluate(f, structure.unflatten(z), z),
            allow_cast=torch.is_autocast_enabled(z.device.type),
        )
        r = f_z.to(accum) - z.to(accum)
        residual, f_norm = norm(r), norm(f_z)
        diverged = diverged | ~(residual.isfinite() & f_norm.isfinite())
        yield Visit(z, f_z, torch.where(judged, residual, torch.nan), f_norm, judged, diverged)
        usable = (~diverged)[:, None]
        slot, count = k % history_length, min(k + 1, history_length)
        r = torch.where(usable, r, 0.0)
        images.put(full + slot, torch.where(usable, f_z.to(accum), 0.0), all_samples)
        residuals.put(full + slot, r, all_samples)
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
    """a [batch, n], and where it could be found, [batch] bool.

    From [[0, 1ᵀ], [1, G + λ I]] (μ, a) = (1, 0), which may be regular where G is not.
    """
    batch, n = gram.shape[:2]
    system = torch.nn.functional.pad(gram, (1, 0, 1, 0), value=1.0)
    system[:, 0, 0] = 0.0
    system.diagonal(dim1=1, dim2=2)[:, 1:] += ridge
    right = gram.new_zeros(batch, n + 1)
    right[:, 0] = 1.0
    # Those of a singular system are not finite.
    weights = torch.linalg.solve_ex(system, right).result[:, 1:]
    solved = (weights.abs() <= LARGEST_WEIGHT).all(dim=1)
    return torch.where(solved[:, None], weights, 0.0), solved
