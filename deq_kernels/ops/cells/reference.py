"""The iteration of a structured cell in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_counters, steps_of
from deq_kernels.ops.cells.activations import Activation, value
from deq_kernels.ops.cells.arguments import check_structure
from deq_kernels.ops.cells.norms import LEAST_CHANGE, NormKind
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.norms import squared_norm
from deq_kernels.ops.termination import (
    PROGRESS_SHARE,
    Counter,
    Norm,
    Status,
    Tables,
    Trial,
    follow_growth_,
    judge_,
    mark_first_,
    meets_tolerance,
)


def iterate_(
    weight: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    values: Tensor | None,
    sample_ptr: Tensor | None,
    bias: Tensor,
    scale: Tensor | None,
    z: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    activation: int,
    rtol: float,
    atol: float,
    damping: float,
    norm: int,
    stall_steps: int,
    divergence_factor: float,
    fixed_steps: bool,
    accelerate: bool,
) -> None:
    """z ← z + λ (f(z) − z) until all samples have stopped; see `deq_kernels.ops.cells.iterate_`."""
    check_structure(crow, col, sample_ptr, len(z))
    check_counters(counters, steps_of(record))
    tables = Tables(record, counters, active)
    accum = accumulate_dtype(z.dtype)
    weight_t, b = weight.to(accum).T, bias.to(accum)
    c = None if scale is None else scale.to(accum)
    iterate, samples = z.to(accum), len(counters)
    sample_of_row = _owners(sample_ptr, len(z), z.device)
    row_of_entry = _owners(crow, 0 if col is None else len(col), z.device)
    best = iterate.clone()
    by_rows = norm == NormKind.ROWS and sample_ptr is not None
    if by_rows:
        atol = max(atol, LEAST_CHANGE[accum])
    allowed = torch.full((samples,), atol, dtype=torch.float64, device=z.device)
    crop = _Crop.none(samples, iterate)
    status = counters[:, Counter.STATUS]
    started = status == Status.RUNNING
    while bool((status == Status.RUNNING).any()):
        mixed = iterate if c is None else c * iterate
        if col is not None and values is not None:
            entries = values.to(accum)[:, None] * mixed.index_select(0, col)
            mixed = torch.zeros_like(mixed).index_add_(0, row_of_entry, entries)
        f = value(Activation(activation), mixed @ weight_t + b)
        r = f - iterate
        residual = _sample_norm(r, sample_of_row, samples, norm)
        f_norm = _sample_norm(f, sample_of_row, samples, norm)
        if by_rows:
            unsettled = _unsettled(r, f, rtol, atol, sample_of_row, samples)
            allowed = torch.where(unsettled == 0.0, atol, -torch.inf)
            if not fixed_steps:
                _mark_progress_(unsettled, tables)
        moved = f if damping == 1.0 else iterate + damping * r
        if fixed_steps:
            advance = status == Status.RUNNING
            _record(tables, residual, f_norm, rtol, allowed)
        else:
            # What has these two norms: the rule is stated once.
            zero = torch.zeros_like(residual)
            verdict = judge_(
                torch.stack((f_norm, zero), 1),
                torch.stack((f_norm, residual), 1),
                tables,
                rtol=rtol,
                atol=allowed,
                stall_steps=stall_steps,
                divergence_factor=divergence_factor,
                max_rejections=0,
                trial=Trial(crop.combined, crop.residual),
            )
            advance = verdict.advance | verdict.backtrack
            best = torch.where(verdict.improved[sample_of_row, None], iterate, best)
            if accelerate:
                moved, crop = _combine(
                    iterate, r, damping, residual, verdict.backtrack, crop, sample_of_row
                )
        iterate = torch.where(advance[sample_of_row, None], moved, iterate)
    result = iterate if fixed_steps else best
    z.copy_(torch.where(started[sample_of_row, None], result.to(z.dtype), z))


@dataclass(frozen=True, slots=True)
class _Crop:
    """The steps before: z', o and o', [N, n], and per sample, [G], what is known of them."""

    z: Tensor
    o: Tensor
    earlier_o: Tensor
    residual: Tensor
    known: Tensor
    """How many of o and o' there are."""
    combined: Tensor
    """Whether the step before was more than the damped one."""

    @classmethod
    def none(cls, samples: int, like: Tensor) -> _Crop:
        zero = torch.zeros_like(like)
        none = torch.zeros(samples, dtype=torch.int64, device=like.device)
        return cls(zero, zero, zero, none.double(), none, none.bool())


LEAST_ANGLE = 1e-6
"""Two directions whose angle has a sine of this square or less count as one."""

LEAST_LENGTH = 1 / 32
"""Of the damped step in the next one: with less the iterate would stand still, because f is not as
linear as was assumed, and o, once it is near zero, is no residual of anything."""


def _combine(
    z: Tensor, r: Tensor, damping: float, residual: Tensor, back: Tensor, crop: _Crop, owner: Tensor
) -> tuple[Tensor, _Crop]:
    """The next iterate of each sample, or the one before where the step from it is taken back."""
    u, v = crop.o - r, crop.earlier_o - crop.o
    pairs = [(x.double() * y.double()).sum(1) for x, y in ((u, u), (u, v), (v, v), (u, r))]
    totals = torch.zeros(len(residual), 4, dtype=torch.float64, device=z.device)
    uu, uv, vv, ur = totals.index_add_(0, owner, torch.stack(pairs, 1)).unbind(1)
    # o is orthogonal to v, so that <v, r> = -<u, v>.
    determinant = uu * vv - uv * uv
    two = (crop.known > 1) & (determinant > LEAST_ANGLE * uu * vv)
    share = torch.where(two, (-ur * vv - uv * uv) / determinant, -ur / uu)
    momentum = torch.where(two, uv * (uu + ur) / determinant, 0.0)
    usable = (crop.known > 0) & share.isfinite() & momentum.isfinite()
    usable &= (1.0 - share).abs() >= LEAST_LENGTH
    known = torch.where(usable, crop.known, 0)
    share, momentum = torch.where(usable, share, 0.0), torch.where(usable, momentum, 0.0)

    a, b = (weight[owner, None].to(z.dtype) for weight in (share, momentum))
    # Where a weight is zero, what it belongs to may be infinite.
    towards = torch.where(a == 0.0, 0.0, a * u)
    o = r + towards + torch.where(b == 0.0, 0.0, b * v)
    ahead = z + damping * (1.0 - a) * r + torch.where(b == 0.0, 0.0, b * (crop.z - z))
    moved = torch.where(back[owner, None], crop.z, ahead)
    known = torch.where(back, 0, (known + 1).clamp_max(2))
    combined = ~back & ((share != 0.0) | (momentum != 0.0))
    return moved, _Crop(z, o, crop.o, residual, known, combined)


def _owners(starts: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Whose each of `length` items is, given where each owner's begin; without that, its own."""
    if starts is None:
        return torch.arange(length, device=device)
    owners = torch.arange(len(starts) - 1, device=device)
    return owners.repeat_interleave(starts.diff(), output_size=length)


def _sample_norm(x: Tensor, sample_of_row: Tensor, samples: int, norm: int) -> Tensor:
    """‖x‖ of each sample in float64, in a `NormKind`."""
    total = torch.zeros(samples, dtype=torch.float64, device=x.device)
    if norm == NormKind.TWO:
        return total.index_add_(0, sample_of_row, squared_norm(x)).sqrt_()
    if x.shape[1] == 0:
        return total
    of_rows = squared_norm(x).sqrt() if norm == NormKind.ROWS else x.double().abs().amax(1)
    return total.scatter_reduce_(0, sample_of_row, of_rows, "amax")


UNSETTLED = Norm.BASE
"""Where a sample keeps the residual of its unsettled rows when that had last made progress, a
column that is Broyden's elsewhere."""


def _unsettled(
    r: Tensor, f: Tensor, rtol: float, atol: float, sample_of_row: Tensor, samples: int
) -> Tensor:
    """The largest residual of a row that is above its tolerance or NaN, [G]."""
    of_row = squared_norm(r).sqrt()
    settled = of_row <= atol + rtol * squared_norm(f).sqrt()
    none = torch.zeros(samples, dtype=torch.float64, device=r.device)
    return none.scatter_reduce_(0, sample_of_row, of_row.masked_fill(settled, 0.0), "amax")


def _mark_progress_(unsettled: Tensor, tables: Tables) -> None:
    """Mark that of the rows that have not settled.

    The largest residual of all may stand still meanwhile, as when what rows know travels from one
    to the next.
    """
    mark, steps = tables.norms[:, UNSETTLED], tables.counters[:, Counter.STEPS]
    running = (tables.counters[:, Counter.STATUS] == Status.RUNNING) & (unsettled != 0.0)
    last = torch.where(steps == 0, torch.inf, mark)
    progress = running & (unsettled < PROGRESS_SHARE * last)
    mark.copy_(torch.where(running, torch.where(progress, unsettled, last), mark))
    marked_step = tables.counters[:, Counter.PROGRESS_STEP]
    marked_step.copy_(torch.where(progress, steps, marked_step))


def _record(tables: Tables, residual: Tensor, f_norm: Tensor, rtol: float, atol: Tensor) -> None:
    """Record one of a fixed number of evaluations; a sample gets its status at the last one."""
    status, steps = (tables.counters[:, c] for c in (Counter.STATUS, Counter.STEPS))
    running = status == Status.RUNNING
    rows = running.nonzero().flatten()
    tables.trace[rows, steps[rows]] = residual[rows]
    first = running & (steps == 0)
    norms = tables.norms
    mark_first_(residual, f_norm, first, norms)
    finite = residual.isfinite() & f_norm.isfinite()
    met = finite & meets_tolerance(residual, f_norm, norms, rtol=rtol, atol=atol)
    follow_growth_(residual, f_norm, running & finite & ~met, norms)
    for column in (Norm.BEST, Norm.PROGRESS):
        norms[:, column] = torch.where(running, residual, norms[:, column])
    steps += running
    last = running & (steps == tables.trace.shape[1])
    status.masked_fill_(last, int(Status.MAX_STEPS))
    status.masked_fill_(last & ~finite, int(Status.DIVERGED))
    status.masked_fill_(last & met, int(Status.CONVERGED))
    tables.active.copy_((status == Status.RUNNING).sum())
