"""The iteration of a structured cell in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.ops.cells.activations import Activation, value
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import (
    Counter,
    Norm,
    Status,
    Tables,
    Trial,
    Verdict,
    judge_,
    squared_norm,
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
    tables = Tables(record, counters, active)
    accum = accumulate_dtype(z.dtype)
    weight_t, b = weight.to(accum).T, bias.to(accum)
    c = None if scale is None else scale.to(accum)
    iterate, samples = z.to(accum), len(counters)
    sample_of_row = _owners(sample_ptr, len(z), z.device)
    row_of_entry = _owners(crow, 0 if col is None else len(col), z.device)
    best = iterate.clone()
    last = _Last.none(samples, iterate)
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
        moved = f if damping == 1.0 else iterate + damping * r
        if fixed_steps:
            advance = status == Status.RUNNING
            _record(tables, residual, f_norm, rtol, atol)
        else:
            # What has these two norms: the rule is stated once.
            zero = torch.zeros_like(residual)
            verdict = judge_(
                torch.stack((f_norm, zero), 1),
                torch.stack((f_norm, residual), 1),
                tables,
                rtol=rtol,
                atol=atol,
                stall_steps=stall_steps,
                divergence_factor=divergence_factor,
                max_rejections=0,
                trial=Trial(last.extrapolated, last.residual),
            )
            advance = verdict.advance | verdict.backtrack
            best = torch.where(verdict.improved[sample_of_row, None], iterate, best)
            if accelerate:
                moved, last = _extrapolate(moved, r, residual, last, verdict, sample_of_row)
        iterate = torch.where(advance[sample_of_row, None], moved, iterate)
    result = iterate if fixed_steps else best
    z.copy_(torch.where(started[sample_of_row, None], result.to(z.dtype), z))


@dataclass(frozen=True, slots=True)
class _Last:
    """The iterate before: g = z + λ r and r, [N, n], and per sample, [G], what is known of it."""

    g: Tensor
    r: Tensor
    residual: Tensor
    known: Tensor
    extrapolated: Tensor

    @classmethod
    def none(cls, samples: int, like: Tensor) -> _Last:
        zero = torch.zeros_like(like)
        no = torch.zeros(samples, dtype=torch.bool, device=like.device)
        return cls(zero, zero, no.double(), no, no)


def _extrapolate(
    g: Tensor, r: Tensor, residual: Tensor, last: _Last, verdict: Verdict, sample_of_row: Tensor
) -> tuple[Tensor, _Last]:
    """g − γ (g − g') of each sample, or g' where the step from the iterate before is taken back."""
    change = (r - last.r).double()
    totals = torch.zeros(len(residual), 2, dtype=torch.float64, device=g.device)
    products = torch.stack((change.square().sum(1), (change * r.double()).sum(1)), 1)
    totals.index_add_(0, sample_of_row, products)
    gamma = totals[:, 1] / totals[:, 0]
    gamma = torch.where(last.known & gamma.isfinite(), gamma, 0.0)
    back = verdict.backtrack
    of_row = gamma[sample_of_row, None].to(g.dtype)
    onwards = torch.where(of_row == 0.0, g, g - of_row * (g - last.g))
    moved = torch.where(back[sample_of_row, None], last.g, onwards)
    return moved, _Last(g, r, residual, ~back, ~back & (gamma != 0.0))


def _owners(starts: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Whose each of `length` items is, given where each owner's begin; without that, its own."""
    if starts is None:
        return torch.arange(length, device=device)
    owners = torch.arange(len(starts) - 1, device=device)
    return owners.repeat_interleave(starts.diff(), output_size=length)


def _sample_norm(x: Tensor, sample_of_row: Tensor, samples: int, norm: int) -> Tensor:
    """‖x‖ of each sample in float64: the 2-norm for `norm` 0, else the largest magnitude."""
    total = torch.zeros(samples, dtype=torch.float64, device=x.device)
    if norm == 0:
        return total.index_add_(0, sample_of_row, squared_norm(x)).sqrt_()
    if x.shape[1] == 0:
        return total
    return total.scatter_reduce_(0, sample_of_row, x.double().abs().amax(1), "amax")


def _record(tables: Tables, residual: Tensor, f_norm: Tensor, rtol: float, atol: float) -> None:
    """Record one of a fixed number of evaluations; a sample gets its status at the last one."""
    status, steps = (tables.counters[:, c] for c in (Counter.STATUS, Counter.STEPS))
    running = status == Status.RUNNING
    rows = running.nonzero().flatten()
    tables.trace[rows, steps[rows]] = residual[rows]
    first = running & (steps == 0)
    norms = tables.norms
    norms[:, Norm.FIRST] = torch.where(first, residual, norms[:, Norm.FIRST])
    for column in (Norm.BEST, Norm.PROGRESS):
        norms[:, column] = torch.where(running, residual, norms[:, column])
    steps += running
    last = running & (steps == tables.trace.shape[1])
    finite = residual.isfinite() & f_norm.isfinite()
    status.masked_fill_(last, int(Status.MAX_STEPS))
    status.masked_fill_(last & ~finite, int(Status.DIVERGED))
    converged = last & finite & (residual <= atol + rtol * f_norm)
    status.masked_fill_(converged, int(Status.CONVERGED))
    tables.active.copy_((status == Status.RUNNING).sum())
