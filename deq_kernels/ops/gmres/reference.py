"""One evaluation's part of restarted GMRES in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.gmres.table import Number, Table, Vector
from deq_kernels.ops.termination import Counter, Status, Tables, judge_

BREAKDOWN_SHARE = 4.0
"""Image components outside the Krylov space below this many units of rounding are none."""

MARGIN = 0.95
"""A cycle ends when the residual it predicts is below this share of the tolerance."""

MAX_REJECTIONS = 1


def breakdown_share(dtype: torch.dtype) -> float:
    """What is outside the Krylov space below this share of an image is rounding."""
    return BREAKDOWN_SHARE * torch.finfo(dtype).eps


def step_(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    basis: Tensor,
    start: Tensor,
    start_residual: Tensor,
    algebra: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    stall_steps: int,
    divergence_factor: float,
) -> None:
    """One evaluation of every running sample; see `deq_kernels.ops.gmres.step_`."""
    tables = Tables(record, counters, active)
    vectors = (basis, start, start_residual, algebra)
    running = counters[:, Counter.STATUS] == Status.RUNNING
    probing = running & (counters[:, Counter.COUNT] > 0)
    ended, extended = (running & ~probing).nonzero().flatten(), probing.nonzero().flatten()
    if ended.numel() > 0:
        _end_cycle(
            ended,
            f_z,
            z,
            best_z,
            *vectors,
            tables,
            rtol=rtol,
            atol=atol,
            stall_steps=stall_steps,
            divergence_factor=divergence_factor,
        )
    if extended.numel() > 0:
        _take_image(extended, f_z, z, *vectors, tables, rtol=rtol, atol=atol)
    active.copy_((counters[:, Counter.STATUS] == Status.RUNNING).sum())


def _end_cycle(
    index: Tensor,
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    basis: Tensor,
    start: Tensor,
    start_residual: Tensor,
    algebra: Tensor,
    tables: Tables,
    *,
    rtol: float,
    atol: float,
    stall_steps: int,
    divergence_factor: float,
) -> None:
    """Judge the samples `index`, and begin their next cycles."""
    own = Tables(tables.record[index], tables.counters[index], tables.active.clone())
    point, f_point = z[index], f_z[index]
    verdict = judge_(
        f_point,
        point,
        own,
        rtol=rtol,
        atol=atol,
        stall_steps=stall_steps,
        divergence_factor=divergence_factor,
        max_rejections=MAX_REJECTIONS,
    )
    best = torch.where(verdict.improved[:, None], point, best_z[index])
    left = own.trace.shape[1] - own.counters[:, Counter.STEPS]
    begun = verdict.advance & (left >= 2)
    own.counters[:, Counter.COUNT] = begun.long()
    tables.record[index], tables.counters[index] = own.record, own.counters
    best_z[index] = best
    moved = torch.where(verdict.reject[:, None], best, point)
    moved = torch.where((verdict.advance & ~begun)[:, None], f_point, moved)

    accum = accumulate_dtype(z.dtype)
    w, f = point.to(accum), f_point.to(accum)
    residual = f - w
    length = residual.double().norm(dim=1)
    start_norm, f_norm = w.double().norm(dim=1), f.double().norm(dim=1)
    # With t above twice the size of w₀ and f(w₀), most of the rounding in the difference of
    # residuals is that of t v.
    exponent = torch.frexp(torch.maximum(start_norm, f_norm)).exponent
    scale = torch.ldexp(torch.full_like(length, 2.0), exponent)
    first = (residual.double() / length[:, None]).to(accum)
    along = (residual.double() * w.double()).sum(1) / length

    chosen = index[begun]
    start[chosen], start_residual[chosen], basis[chosen, 0] = (
        w[begun],
        residual[begun],
        first[begun],
    )
    own_table = algebra[index]
    table = Table.of(own_table, basis.shape[1] - 1)
    numbers = torch.stack((scale, start_norm, length, torch.zeros_like(length)), dim=1)
    table.numbers.copy_(torch.where(begun[:, None], numbers, table.numbers))
    first_along = table.vectors[:, Vector.ALONG_START, 0]
    first_along.copy_(torch.where(begun, along, first_along))
    algebra[index] = own_table
    probe = w + scale[:, None].to(accum) * first
    z[index] = torch.where(begun[:, None], probe.to(z.dtype), moved)


def _take_image(
    index: Tensor,
    f_z: Tensor,
    z: Tensor,
    basis: Tensor,
    start: Tensor,
    start_residual: Tensor,
    algebra: Tensor,
    tables: Tables,
    *,
    rtol: float,
    atol: float,
) -> None:
    """Take in M v of the newest v of the samples `index`, and go on or end the cycle."""
    accum, columns = start.dtype, basis.shape[1] - 1
    counters, steps = tables.counters, tables.counters[index, Counter.STEPS]
    count = counters[index, Counter.COUNT]
    newest = count - 1
    held = torch.arange(columns, device=z.device) < count[:, None]
    rows = torch.where(held[:, :, None], basis[index, :columns].double(), 0.0)
    w0 = start[index].double()
    own_table = algebra[index]
    table = Table.of(own_table, columns)
    scale = table.numbers[:, Number.SCALE]
    # t M v: t is a power of two, so that it is as good as M v until numbers are rank-sized.
    image = start_residual[index] - (f_z[index].to(accum) - z[index].to(accum))
    first, image = _project(rows, image)
    again = torch.einsum("bjd,bd->bj", rows, image.double())
    column = torch.where(held, (first + again) / scale[:, None], 0.0)
    # The rest's part in the basis is of the size of rounding: what it takes off is exact enough.
    rest = (image.double().square().sum(1) - again.square().sum(1)).clamp(min=0.0).sqrt()
    height = rest / scale
    image_norm = (column.square().sum(1) + height.square()).sqrt()
    finite = image_norm.isfinite()
    # M v is known to a rounding of its own length and of that of v, which is 1.
    smallest = breakdown_share(z.dtype) * image_norm.clamp(min=1.0)
    height = torch.where(height > smallest, height, 0.0)

    taken = finite & _append_column(table, newest, column, height, smallest, finite)
    predicted = table.numbers[:, Number.REMAINDER].abs()
    known = torch.where(taken, count, newest)
    left = tables.trace.shape[1] - (steps + 1)
    bound = MARGIN * _tolerance(table, known, predicted, rtol, atol)
    spent = (count == columns) | (left < 2) | (height == 0.0) | ~taken
    done = finite & (spent | (predicted <= bound))
    diverged = ~finite & (counters[index, Counter.REJECTIONS] >= MAX_REJECTIONS)
    ending, going_on = (~finite & ~diverged) | done, finite & ~done

    tables.trace[index, steps] = torch.where(finite, predicted, torch.nan)
    counters[index, Counter.STEPS] = steps + 1
    counters[index, Counter.REJECTIONS] += ~finite & ~diverged
    counters[index, Counter.COUNT] = torch.where(going_on, count + 1, 0)
    status = torch.where(diverged, int(Status.DIVERGED), counters[index, Counter.STATUS])
    counters[index, Counter.STATUS] = status

    combined = torch.arange(columns, device=z.device) < known[:, None]
    y = torch.where(combined & ending[:, None], table.vectors[:, Vector.SOLUTION], 0.0)
    minimiser = (w0 + torch.einsum("bj,bjd->bd", y, rows)).to(accum)
    further = (image.double() - torch.einsum("bj,bjd->bd", again, rows)) / rest[:, None]
    further = further.to(accum)
    chosen = index[going_on]
    basis[chosen, count[going_on]] = further[going_on]
    along = (image.double() * w0).sum(1)
    stored_along = table.vectors[:, Vector.ALONG_START]
    along = (along - torch.where(held, again * stored_along, 0.0).sum(1)) / rest
    placed = going_on[:, None] & (torch.arange(columns, device=z.device) == count[:, None])
    stored_along.copy_(torch.where(placed, along[:, None], stored_along))
    algebra[index] = own_table
    probe = start[index] + scale[:, None].to(accum) * further
    moved = torch.where(ending[:, None], minimiser, probe).to(z.dtype)
    z[index] = torch.where(diverged[:, None], z[index], moved)


def _project(rows: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Vᵀ x in float64, and x − V Vᵀ x in the dtype of x."""
    dots = torch.einsum("bjd,bd->bj", rows, image.double())
    return dots, (image.double() - torch.einsum("bj,bjd->bd", dots, rows)).to(image.dtype)


def _append_column(
    table: Table, newest: Tensor, column: Tensor, height: Tensor, smallest: Tensor, where: Tensor
) -> Tensor:
    """Append (column, height) to the least-squares problem of the samples in `where`.

    R⁻¹ grows by a column, and y = R⁻¹ g by its share.

    Returns:
        [samples] bool: which columns add anything; the others are left out of the solution.
    """
    samples = torch.arange(len(newest), device=newest.device)
    place = torch.arange(column.shape[1], device=newest.device)
    cosine, sine = table.vectors[:, Vector.COSINE], table.vectors[:, Vector.SINE]
    rotated, entries = column[:, 0], list(column.unbind(1))
    for j in range(int(newest.max())):
        turned = j < newest
        following = entries[j + 1]
        c, s = cosine[:, j], sine[:, j]
        entries[j] = torch.where(turned, c * rotated + s * following, entries[j])
        rotated = torch.where(turned, c * following - s * rotated, rotated)
    column = torch.stack(entries, dim=1)
    column[samples, newest] = rotated
    diagonal = (rotated.square() + height.square()).sqrt()
    taken = where & (diagonal > smallest)
    c, s = rotated / diagonal, height / diagonal
    last = table.numbers[:, Number.REMAINDER].clone()

    before = place < newest[:, None]
    pairs = before[:, :, None] & before[:, None, :] & (place[:, None] <= place)
    inverse = torch.where(pairs, table.inverse, 0.0)
    above = torch.where(before, column, 0.0)
    grown = -torch.einsum("bij,bj->bi", inverse, above) / diagonal[:, None]
    grown[samples, newest] = 1.0 / diagonal
    written = taken[:, None] & (place <= newest[:, None])
    table.inverse.transpose(1, 2)[samples, newest] = torch.where(
        written, grown, table.inverse.transpose(1, 2)[samples, newest]
    )
    solution = table.vectors[:, Vector.SOLUTION]
    share = (c * last)[:, None] * grown
    sum_so_far = torch.where(before, solution, 0.0) + share
    solution.copy_(torch.where(written, sum_so_far, solution))
    for vector, value in ((cosine, c), (sine, s), (table.vectors[:, Vector.COLUMN], rotated)):
        vector[samples, newest] = torch.where(taken, value, vector[samples, newest])
    remainder = table.numbers[:, Number.REMAINDER]
    remainder.copy_(torch.where(taken, -s * last, remainder))
    return taken


def _tolerance(table: Table, known: Tensor, predicted: Tensor, rtol: float, atol: float) -> Tensor:
    """The tolerance at the minimiser w, with ‖f(w)‖ ≥ ‖w‖ − ‖r‖ and w = w₀ + Σ y_j v_j."""
    y, along = table.vectors[:, Vector.SOLUTION], table.vectors[:, Vector.ALONG_START]
    held = torch.arange(y.shape[1], device=y.device) < known[:, None]
    change = torch.where(held, y * (2.0 * along + y), 0.0).sum(1)
    w_norm = (table.numbers[:, Number.START_NORM].square() + change).clamp(min=0.0).sqrt()
    return atol + rtol * (w_norm - predicted).clamp(min=0.0)
