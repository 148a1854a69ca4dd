"""The Broyden step and the product-form inverse in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 1. The rank-sized recurrences are written as triangular systems.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops import direction_scale
from deq_kernels.ops.arguments import check_counters, check_counts, steps_of
from deq_kernels.ops.broyden import initial_scale, line_search
from deq_kernels.ops.direction_scale import ScaleRange
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.norms import norm, squared_norm
from deq_kernels.ops.termination import Counter, Norm, Status, Tables, Trial, judge_

SINGULAR_SHARE = 1e-8
"""A denominator π + N below this share of N leaves no digits in the new direction."""


def split_algebra(algebra: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix [batch, capacity, capacity], and the step length and weight of each factor
    [batch, capacity, 2], as views of the table that holds them side by side.
    """
    return algebra[..., :-2], algebra[..., -2:]


def _rows(directions: Tensor, count: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """The first `most` directions [batch, most, dim], zero where a sample has fewer."""
    stored = torch.arange(most, device=count.device) < count[:, None]
    return torch.where(stored[:, :, None], directions[:, :most].to(dtype), 0.0)


def _along(
    gram: Tensor, factors: Tensor, rank: Tensor, rows: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """⟨p_j, u_i⟩ for i < j [batch, most, most] and the factor weights ω [batch, most].

    Zero for i outside the sample's rank and j outside its first `rows` rows, which may hold
    anything; u_i = p_{i+1} + (α_i − 1) p_i.
    """
    index = torch.arange(most, device=rank.device)
    in_rank = index < rank[:, None]
    step, weight = factors[:, :most, 0], factors[:, :most, 1]
    table = gram[:, :most, : most + 1]
    shifted = torch.nn.functional.pad(table, (0, max(0, most + 1 - table.shape[2])))
    along = shifted[:, :, 1 : most + 1] + (step[:, None, :] - 1.0) * shifted[:, :, :most]
    lower = (index[:, None] > index) & in_rank[:, None, :] & (index < rows[:, None])[:, :, None]
    return torch.where(lower, along, 0.0), torch.where(in_rank, weight, 0.0)


def _solve_unit(lower: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    """x with (I − lower) x = right for right [batch, most, columns]."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(eye - lower, right, upper=upper, unitriangular=True)


def _expand(c: Tensor, step: Tensor) -> Tensor:
    """e with Σ c_j u_j = Σ e_j p_j, from c [..., most] to e [..., most + 1]."""
    pad = torch.nn.functional.pad
    return pad(c, (1, 0)) + pad((step - 1.0) * c, (0, 1))


def matvec(
    directions: Tensor,
    algebra: Tensor,
    rank: Tensor,
    x: Tensor,
    scale: float,
    transpose: bool,
) -> Tensor:
    """H x, or Hᵀ x, for x [batch, columns, dim], with H₀ = scale · I."""
    check_counts(rank, "rank", directions.shape[1])
    check_counts(torch.where(rank > 0, rank + 1, 0), "rank + 1", directions.shape[1])
    gram, factors = split_algebra(algebra)
    accum = accumulate_dtype(x.dtype)
    most = int(rank.max()) if rank.numel() else 0
    if most == 0:
        return (scale * x.to(accum)).to(x.dtype)
    count = torch.where(rank > 0, rank + 1, 0)
    rows = _rows(directions, count, most + 1, accum)
    along, weight = _along(gram, factors, rank, rank, most)
    step = torch.where(weight != 0.0, factors[:, :most, 0], 1.0)
    start = x.to(accum) if transpose else scale * x.to(accum)
    q = torch.einsum("bcd,bjd->bcj", start, rows).double()
    if transpose:
        right = weight[:, None] * (q[..., 1:] + (step - 1.0)[:, None] * q[..., :-1])
        upper = weight[:, :, None] * along.mT
        d = _solve_unit(upper, right.mT, upper=True).mT
        product = start + torch.einsum("bcj,bjd->bcd", d.to(accum), rows[:, :-1])
        return (scale * product).to(x.dtype)
    c = _solve_unit(weight[:, :, None] * along, (weight[:, None] * q[..., :-1]).mT).mT
    e = _expand(c, step[:, None])
    return (start + torch.einsum("bcj,bjd->bcd", e.to(accum), rows)).to(x.dtype)


def step_(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    directions: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    damping: float,
    gamma: float,
    stall_steps: int,
    divergence_factor: float,
    finish_inverse: bool,
    drop_oldest: bool,
    estimate_gamma: bool,
    max_backtracks: int,
) -> None:
    """One Broyden step of every running sample, in place; see `deq_kernels.ops.broyden.step_`."""
    capacity, dim = directions.shape[1:]
    check_counters(counters, steps_of(record), capacity)
    tables = Tables(record, counters, active)
    norms, (gram, factors) = tables.norms, split_algebra(algebra)
    count, backtracks = counters[:, Counter.COUNT], counters[:, Counter.BACKTRACKS]
    starts = (counters[:, Counter.STATUS] == Status.RUNNING) & (counters[:, Counter.STEPS] == 0)
    norms[:, Norm.GAMMA] = torch.where(starts, gamma, norms[:, Norm.GAMMA])
    norms[:, Norm.SCALE] = torch.where(starts, 1.0, norms[:, Norm.SCALE])
    newest = (count - 1).clamp(min=0)[:, None]
    step = factors[..., 0].gather(1, newest)[:, 0]
    trial = None
    if max_backtracks > 0:
        can_shorten = (count > 0) & (backtracks < max_backtracks)
        evaluations = counters[:, Counter.STEPS]
        accepted = line_search.accepted(norms[:, Norm.BASE], step, evaluations)
        trial = Trial(can_shorten, accepted)
    verdict = judge_(
        f_z,
        z,
        tables,
        rtol=rtol,
        atol=atol,
        stall_steps=stall_steps,
        divergence_factor=divergence_factor,
        max_rejections=1,
        trial=trial,
    )
    best_z.copy_(torch.where(verdict.improved[:, None], z, best_z))

    accum = accumulate_dtype(z.dtype)
    residual = f_z.to(accum) - z.to(accum)
    length = norm(residual)
    back = verdict.backtrack.nonzero().flatten()
    shorter = line_search.shorter(norms[back, Norm.BASE], step[back], length[back])
    moved = ((shorter - step[back]) / norms[back, Norm.SCALE]).to(accum)[:, None]
    along = directions[back, newest[back, 0]].to(accum)
    z[back] = (z[back].to(accum) + moved * along).to(z.dtype)
    factors[back, newest[back, 0], 0] = shorter
    backtracks[back] += 1
    backtracks.masked_fill_(verdict.advance | verdict.reject, 0)
    norms[:, Norm.BASE] = torch.where(verdict.advance, length, norms[:, Norm.BASE])

    z.copy_(torch.where(verdict.reject[:, None], best_z, z))
    restart = verdict.reject
    full = verdict.advance & (count == capacity)
    extend = verdict.advance
    drops = drop_oldest and capacity > 1
    if finish_inverse:  # the last secant pair of a sample that stops still enters
        last = verdict.stop & ~verdict.rejected & (count > 0)
        extend = extend | (last & ((count < capacity) | drops))
    if drops:
        _drop_oldest_(directions, gram, factors, extend & (count == capacity))
        count -= (extend & (count == capacity)).long()
    else:
        restart = restart | full
    if estimate_gamma:
        estimated = verdict.advance & (count == 1) & (counters[:, Counter.ESTIMATES] == 0)
        counters[:, Counter.ESTIMATES] += estimated
        index = estimated.nonzero().flatten()
        before = norms[index, Norm.GAMMA]
        norms[index, Norm.GAMMA] = _estimate(
            residual[index], directions[index, 0].to(accum), step[index], norms[index]
        )
        changed = norms[index, Norm.GAMMA] != before
        restart = restart.index_put((index,), restart[index] | changed)
    count.masked_fill_(restart, 0)
    scale = direction_scale.choose(length, dim, ScaleRange.of(directions.dtype, accum))
    begins = verdict.advance & (count == 0)
    norms[:, Norm.SCALE] = torch.where(begins, scale, norms[:, Norm.SCALE])

    index = extend.nonzero().flatten()
    if index.numel() == 0:
        return
    slot, scale = count[index], norms[index, Norm.SCALE]
    start = -norms[index, Norm.GAMMA].to(accum)[:, None] * residual[index]
    start *= scale.to(accum)[:, None]
    p = _next_direction(start, directions, gram, factors, index, slot)
    stored = p.to(directions.dtype)
    directions[index, slot] = stored
    factors[index, slot, 0] = damping
    count[index] += 1
    step_length = (damping / scale).to(accum)[:, None]
    advanced = (z[index].to(accum) + step_length * stored.to(accum)).to(z.dtype)
    z[index] = torch.where(verdict.advance[index][:, None], advanced, z[index])


def _drop_oldest_(directions: Tensor, gram: Tensor, factors: Tensor, dropped: Tensor) -> None:
    """Let factor 0 leave where `dropped` says so: the others move up one row."""
    index = dropped.nonzero().flatten()
    directions[index, :-1] = directions[index, 1:]
    gram[index, :-1, :-1] = gram[index, 1:, 1:]
    factors[index, :-1] = factors[index, 1:]


def _estimate(residual: Tensor, p: Tensor, step: Tensor, norms: Tensor) -> Tensor:
    """γ from the first direction p, stored scaled, and the residual after the step along it."""
    gamma, scale = norms[:, Norm.GAMMA], norms[:, Norm.SCALE]
    scaled = residual * scale.to(residual.dtype)[:, None]
    pi, norm_sq = ((p * other).sum(1).double() for other in (scaled, p))
    return initial_scale.estimate(gamma, step, pi, norm_sq, squared_norm(scaled))


def _next_direction(
    start: Tensor,
    directions: Tensor,
    gram: Tensor,
    factors: Tensor,
    index: Tensor,
    count: Tensor,
) -> Tensor:
    """p = −H r of the samples `index` from H₀ r, after finishing the newest factor of each.

    With w = H_{k} r over the finished factors k = count − 1, π = ⟨p_k, w⟩, N = ‖p_k‖²:
    p = −(N w + (α_k − 1) π p_k) / (π + N), or −w where the guard skips the factor.
    """
    most = int(count.max())
    if most == 0:
        return -start
    k = (count - 1).clamp(min=0)
    samples = torch.arange(len(index), device=index.device)
    rows = _rows(directions[index], count, most, start.dtype)
    newest = rows[samples, k]
    column = torch.einsum("bjd,bd->bj", rows, newest).double()
    has_factor = count > 0
    gram[index[has_factor], :most, k[has_factor]] = column[has_factor]
    gram[index[has_factor], k[has_factor], :most] = column[has_factor]

    along, weight = _along(gram[index], factors[index], k, count, most)
    q = torch.einsum("bjd,bd->bj", rows, start).double()
    c = _solve_unit(weight[:, :, None] * along, (weight * q)[:, :, None])[:, :, 0]
    pi = q[samples, k] + (along[samples, k] * c).sum(-1)
    norm_sq = column[samples, k]
    denominator = pi + norm_sq
    usable = has_factor & (norm_sq > 0.0) & (denominator.abs() > SINGULAR_SHARE * norm_sq)
    usable &= (denominator.abs() <= 1e300) & (1.0 / norm_sq <= 1e300)
    step = torch.where(weight != 0.0, factors[index, :most, 0], 1.0)
    e = _expand(c, step)[:, :most]
    scale = torch.where(usable, -norm_sq / denominator, -1.0)
    newest_step = factors[index, k, 0]
    coefficients = scale[:, None] * e
    correction = torch.where(usable, (newest_step - 1.0) * pi / denominator, 0.0)
    coefficients[samples, k] -= correction
    factors[index[has_factor], k[has_factor], 1] = torch.where(usable, 1.0 / norm_sq, 0.0)[
        has_factor
    ]
    combined = torch.einsum("bj,bjd->bd", coefficients.to(start.dtype), rows)
    return scale.to(start.dtype)[:, None] * start + combined
