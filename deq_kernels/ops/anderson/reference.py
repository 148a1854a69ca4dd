"""The Anderson step in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops import direction_scale
from deq_kernels.ops.arguments import check_counters, steps_of
from deq_kernels.ops.direction_scale import ScaleRange
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import Counter, Norm, Status, Tables, judge_

LARGEST_WEIGHT = 1e30
"""A weight beyond this is no use to a float32 state."""


def dependent_share(state_dtype: torch.dtype, history_dtype: torch.dtype) -> float:
    """The squared distance of a change from the span of newer ones, as a share of its squared
    length, at which it says nothing new: the rounding of the dots, or of the stored change.
    """
    summed = torch.finfo(accumulate_dtype(state_dtype)).eps
    return max(summed, torch.finfo(history_dtype).eps ** 2)


def step_(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    residual_changes: Tensor,
    image_changes: Tensor,
    last_residual: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    damping: float,
    regularization: float,
    stall_steps: int,
    divergence_factor: float,
) -> None:
    """One Anderson step of every running sample; see `deq_kernels.ops.anderson.step_`."""
    capacity, dim = residual_changes.shape[1:]
    check_counters(counters, steps_of(record))
    tables = Tables(record, counters, active)
    scales = tables.norms[:, Norm.SCALE]
    running = counters[:, Counter.STATUS] == Status.RUNNING
    scales.masked_fill_(running & (counters[:, Counter.STEPS] == 0), 1.0)
    verdict = judge_(
        f_z,
        z,
        tables,
        rtol=rtol,
        atol=atol,
        stall_steps=stall_steps,
        divergence_factor=divergence_factor,
        max_rejections=1,
    )
    best_z.copy_(torch.where(verdict.improved[:, None], z, best_z))
    z.copy_(torch.where(verdict.reject[:, None], best_z, z))
    seen = counters[:, Counter.COUNT]
    seen.masked_fill_(verdict.reject, 0)
    index = verdict.advance.nonzero().flatten()
    if index.numel() == 0:
        return

    accum = accumulate_dtype(z.dtype)
    f, iterate = f_z[index].to(accum), z[index].to(accum)
    residual = f - iterate
    # The damped step; f itself where nothing is damped.
    moved = f if damping == 1.0 else iterate + damping * residual
    before, norm = seen[index], tables.trace[index, counters[index, Counter.STEPS] - 1]
    begun = direction_scale.choose(norm, dim, ScaleRange.of(residual_changes.dtype, accum))
    scale = torch.where(before == 0, begun, scales[index])
    scales[index] = scale
    if capacity > 0:
        _complete_newest(
            residual, residual_changes, image_changes, last_residual, index, before, scale, damping
        )
        ridge = regularization * (norm * scale).square()
        share = dependent_share(z.dtype, residual_changes.dtype)
        gram = algebra[..., :capacity]
        scaled = scale.to(accum)[:, None] * residual
        weights, slots, useful = _weights(
            scaled, residual_changes, gram, index, before, ridge, share
        )
        images = image_changes[index[:, None], slots].to(accum)
        images = torch.where(_in_use(before, capacity, slots)[:, :, None], images, 0.0)
        correction = -torch.einsum("bj,bjd->bd", weights.to(accum), images)
        stored = torch.where(useful[:, None], correction, 0.0).to(image_changes.dtype)
        image_changes[index, before % capacity] = stored
        mixed = iterate + (damping * residual + stored.to(accum))
        moved = torch.where(useful[:, None], mixed, moved)
    seen[index] += 1
    z[index] = moved.to(z.dtype)


def _in_use(seen: Tensor, capacity: int, slots: Tensor) -> Tensor:
    """Which of the slots, listed from the newest change on, hold one; shape of `slots`."""
    return torch.arange(slots.shape[1], device=seen.device) < seen.clamp(max=capacity)[:, None]


def _complete_newest(
    residual: Tensor,
    residual_changes: Tensor,
    image_changes: Tensor,
    last_residual: Tensor,
    index: Tensor,
    seen: Tensor,
    scale: Tensor,
    damping: float,
) -> None:
    """Store the changes that the evaluation at hand completes, and its residual.

    Those of the residual are stored times a power of two, which keeps their dots in range.

    The last step went from the last image by a correction, which lies in the slot of the image
    change; from there to the new image it is β r.
    """
    has_change = seen > 0
    rows, slot = index[has_change], (seen[has_change] - 1) % residual_changes.shape[1]
    r = residual[has_change]
    change = r - last_residual[rows].to(r.dtype)
    image_change = image_changes[rows, slot].to(r.dtype) + damping * r
    scaled = scale[has_change].to(r.dtype)[:, None] * change
    residual_changes[rows, slot] = scaled.to(residual_changes.dtype)
    image_changes[rows, slot] = image_change.to(image_changes.dtype)
    last_residual[index] = residual.to(last_residual.dtype)


def _weights(
    residual: Tensor,
    residual_changes: Tensor,
    gram: Tensor,
    index: Tensor,
    seen: Tensor,
    ridge: Tensor,
    share: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """γ and its slots from the newest change on, both [samples, most], and whether γ is of use.

    The residual is scaled as the changes are, and the ridge as products of them.

    (G + λ L) γ = ⟨t, r⟩ + λ e_newest with L = tridiag(−1, 2, −1), by LDLᵀ from the newest change
    on: a change that depends on newer ones gets no weight.
    """
    capacity = residual_changes.shape[1]
    most = int(seen.clamp(max=capacity).max())
    age = torch.arange(most, device=seen.device)
    slots = (seen[:, None] - 1 - age) % capacity
    used = _in_use(seen, capacity, slots)
    rows = residual_changes[index[:, None], slots].to(residual.dtype)
    rows = torch.where(used[:, :, None], rows, 0.0)
    if most > 0:
        column = torch.einsum("bjd,bd->bj", rows, rows[:, 0]).double()
        gram[index[:, None], slots, slots[:, :1]] = column
        gram[index[:, None], slots[:, :1], slots] = column
    pairs = used[:, :, None] & used[:, None, :]
    products = gram[index[:, None, None], slots[:, :, None], slots[:, None, :]]
    products = torch.where(pairs, products, 0.0)
    norm_sq = products.diagonal(dim1=1, dim2=2)
    distance = (age[:, None] - age).abs()
    stencil = torch.where(distance == 0, 2.0, torch.where(distance == 1, -1.0, 0.0)).double()
    matrix = products + ridge[:, None, None] * stencil
    right = torch.einsum("bjd,bd->bj", rows, residual).double()
    right[:, :1] += ridge[:, None]

    pivots = []
    for i in range(most):
        pivot = matrix[:, i, i]
        usable = (norm_sq[:, i] > 0.0) & (pivot > share * (norm_sq[:, i] + 2.0 * ridge))
        pivots.append(torch.where(usable & (pivot <= 1e300), pivot, 0.0))
        kept = (pivots[i] > 0.0)[:, None]
        factor = torch.where(kept, matrix[:, i + 1 :, i] / pivot[:, None], 0.0)
        row = torch.where(kept, matrix[:, i, i + 1 :], 0.0)
        right[:, i + 1 :] -= factor * torch.where(kept, right[:, i, None], 0.0)
        matrix[:, i + 1 :, i + 1 :] -= factor[:, :, None] * row[:, None, :]
    weights = torch.zeros_like(right)
    useful = torch.zeros_like(ridge, dtype=torch.bool)
    for i in reversed(range(most)):
        kept = pivots[i] > 0.0
        weights[:, i] = torch.where(kept, right[:, i] / pivots[i], 0.0)
        known = torch.where(kept[:, None], matrix[:, :i, i] * weights[:, i, None], 0.0)
        right[:, :i] -= known
        useful |= kept
    useful &= (weights.abs() <= LARGEST_WEIGHT).all(dim=1)
    return weights, slots, useful
