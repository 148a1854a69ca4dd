"""One evaluation's part of restarted GMRES in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_counters, steps_of
from deq_kernels.ops.gmres.table import Number, Table, Vector
from deq_kernels.ops.low_rank import reference as low_rank
from deq_kernels.ops.norms import norm
from deq_kernels.ops.termination import Counter, Status, Tables, judge_

BREAKDOWN_SHARE = 4.0
"""Image components outside the Krylov space below this many units of rounding are none."""

MARGIN = 0.95
"""A cycle ends when the residual it predicts is below this share of the tolerance."""

MAX_REJECTIONS = 1

SCALE_EXPONENTS = {
    torch.float64: (-1021, 1022),
    torch.float32: (-125, 126),
    torch.bfloat16: (-125, 126),
    torch.float16: (-125, 14),
}
"""The exponents that t may have: t, 1 / t and w₀ + t v are to be numbers of the state."""


def breakdown_share(dtype: torch.dtype) -> float:
    """What is outside the Krylov space below this share of an image is rounding."""
    return BREAKDOWN_SHARE * torch.finfo(dtype).eps


@dataclass(frozen=True, slots=True)
class Products:
    """Sums over the state, in float64: the two halves of a product with stored rows.

    `deq_kernels.ops.low_rank.dots` and `combine` say what they do. The rest of a step is the same
    for every backend.
    """

    dots: Callable[[Tensor, Tensor, Tensor], Tensor]
    combine: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """⟨x, y⟩ of each sample of x and y [batch, dim]."""
        one = torch.ones(len(x), dtype=torch.int64, device=x.device)
        return self.dots(x[:, None], one, y[:, None])[:, 0, 0]

    def norm(self, x: Tensor) -> Tensor:
        """‖x‖ of each sample of x [batch, dim]."""
        return self.dot(x, x).sqrt()

    def along(self, rows: Tensor, count: Tensor, x: Tensor) -> Tensor:
        """⟨row_j, x⟩ for j < count, else 0, [batch, rows]."""
        return self.dots(rows, count, x[:, None])[:, 0]

    def add(self, rows: Tensor, count: Tensor, c: Tensor, x: Tensor) -> Tensor:
        """x + Σ_{j < count} c_j row_j in the dtype of x."""
        return self.combine(rows, count, c[:, None].contiguous(), x[:, None], 1.0)[:, 0]


PRODUCTS = Products(low_rank.dots, low_rank.combine)


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
    check_counters(counters, steps_of(record), basis.shape[1] - 1)
    tensors = (f_z, z, best_z, basis, start, start_residual, algebra, record, counters, active)
    options = (rtol, atol, stall_steps, divergence_factor)
    take_step_(*tensors, scratch, *options, products=PRODUCTS)


def take_step_(
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
    *,
    products: Products,
) -> None:
    """The step with sums of one's own; nothing here makes the host wait for a GPU."""
    tables = Tables(record, counters, active)
    columns = basis.shape[1] - 1
    table = Table.of(algebra, columns)
    running = counters[:, Counter.STATUS] == Status.RUNNING
    count = torch.where(running, counters[:, Counter.COUNT], 0)
    ended, probing = running & (count == 0), running & (count > 0)
    f, point = f_z.to(start.dtype), z.to(start.dtype)
    residual = f - point
    _extend(
        z,
        basis,
        start,
        start_residual,
        residual,
        table,
        tables,
        count,
        probing,
        rtol,
        atol,
        products,
    )
    status = counters[:, Counter.STATUS]
    after = status.clone()
    status.masked_fill_(~ended, int(Status.MAX_STEPS))
    verdict = judge_(
        f_z,
        z,
        tables,
        rtol=rtol,
        atol=atol,
        stall_steps=stall_steps,
        divergence_factor=divergence_factor,
        max_rejections=MAX_REJECTIONS,
    )
    status.copy_(torch.where(ended, status, after))
    best_z.copy_(torch.where(verdict.improved[:, None], z, best_z))
    length = norm(residual)
    begun = verdict.advance & (tables.trace.shape[1] - counters[:, Counter.STEPS] >= 2)
    begun &= (1.0 / length).isfinite()  # or v_0 would be no vector of numbers
    z.copy_(torch.where(verdict.reject[:, None], best_z, z))
    z.copy_(torch.where((verdict.advance & ~begun)[:, None], f_z, z))
    _begin(
        z,
        basis,
        start,
        start_residual,
        f,
        point,
        residual,
        length,
        table,
        counters,
        begun,
        products,
    )
    active.copy_((counters[:, Counter.STATUS] == Status.RUNNING).sum())


def _begin(
    z: Tensor,
    basis: Tensor,
    start: Tensor,
    start_residual: Tensor,
    f: Tensor,
    point: Tensor,
    residual: Tensor,
    length: Tensor,
    table: Table,
    counters: Tensor,
    begun: Tensor,
    products: Products,
) -> None:
    """Start the cycles of the samples in `begun` at w₀ = `point`, ‖r(w₀)‖ being `length`."""
    column = begun[:, None]
    start_norm = norm(point)
    # With t above twice the size of w₀ and f(w₀), most of the rounding in the difference of
    # residuals is that of t v.
    exponent = torch.frexp(torch.maximum(start_norm, norm(f))).exponent + 1
    least, most = SCALE_EXPONENTS[z.dtype]
    scale = torch.ldexp(torch.ones_like(length), exponent.clamp(least, most))
    first = (residual.double() / length[:, None]).to(start.dtype)
    start.copy_(torch.where(column, point, start))
    start_residual.copy_(torch.where(column, residual, start_residual))
    basis[:, 0].copy_(torch.where(column, first, basis[:, 0]))
    numbers = torch.stack((scale, start_norm, length, torch.zeros_like(length)), dim=1)
    table.numbers.copy_(torch.where(column, numbers, table.numbers))
    along = table.vectors[:, Vector.ALONG_START, 0]
    along.copy_(torch.where(begun, products.dot(first, point), along))
    counters[:, Counter.COUNT].masked_fill_(begun, 1)
    probe = point + scale[:, None].to(point.dtype) * first
    z.copy_(torch.where(column, probe.to(z.dtype), z))


def _extend(
    z: Tensor,
    basis: Tensor,
    start: Tensor,
    start_residual: Tensor,
    residual: Tensor,
    table: Table,
    tables: Tables,
    count: Tensor,
    probing: Tensor,
    rtol: float,
    atol: float,
    products: Products,
) -> None:
    """Take in M v of the newest v of the samples in `probing`, and go on or end the cycle."""
    columns = basis.shape[1] - 1
    counters, rows = tables.counters, basis[:, :columns]
    samples = torch.arange(len(z), device=z.device)
    newest = (count - 1).clamp(min=0)
    place = torch.arange(columns, device=z.device)
    held = place < count[:, None]
    scale = torch.where(probing, table.numbers[:, Number.SCALE], 1.0)
    # M v: t is a power of two, so that this rounds nothing but the difference.
    image = (start_residual - residual) / scale[:, None].to(start.dtype)
    image = torch.where(probing[:, None], image, 0.0)
    dots = products.along(rows, count, image)
    image = products.add(rows, count, -dots, image)
    again = products.along(rows, count, image)
    column = dots + again
    # The rest's part in the basis is of the size of rounding: what it takes off is exact enough.
    rest = (products.norm(image).square() - again.square().sum(1)).clamp(min=0.0).sqrt()
    image_norm = (column.square().sum(1) + rest.square()).sqrt()
    finite = image_norm.isfinite()
    # M v is known to a rounding of its own length and of that of v, which is 1.
    smallest = breakdown_share(z.dtype) * image_norm.clamp(min=1.0)
    height = torch.where(rest > smallest, rest, 0.0)

    taken = _append_column(table, newest, column, height, smallest, probing & finite)
    predicted = table.numbers[:, Number.REMAINDER].abs()
    known = torch.where(taken, count, newest)
    left = tables.trace.shape[1] - (counters[:, Counter.STEPS] + 1)
    bound = MARGIN * _tolerance(table, known, predicted, rtol, atol)
    spent = (count == columns) | (left < 2) | (height == 0.0) | ~taken
    rejected = probing & ~finite
    diverged = rejected & (counters[:, Counter.REJECTIONS] >= MAX_REJECTIONS)
    ending = probing & ((rejected & ~diverged) | (finite & (spent | (predicted <= bound))))
    going_on = probing & finite & ~ending

    index = counters[:, Counter.STEPS].clamp(max=tables.trace.shape[1] - 1)
    value = torch.where(finite, predicted, torch.nan)
    tables.trace[samples, index] = torch.where(probing, value, tables.trace[samples, index])
    counters[:, Counter.STEPS] += probing
    counters[:, Counter.REJECTIONS] += rejected & ~diverged
    counters[:, Counter.STATUS].masked_fill_(diverged, int(Status.DIVERGED))
    following = torch.where(going_on, count + 1, 0)
    counters[:, Counter.COUNT] = torch.where(probing, following, counters[:, Counter.COUNT])

    y = torch.where(place < known[:, None], table.vectors[:, Vector.SOLUTION], 0.0)
    first = torch.where(ending[:, None], start, 0.0)
    minimiser = products.add(rows, torch.where(ending, known, 0), y, first)
    safe = torch.where(going_on, rest, 1.0)[:, None]
    scaled = products.combine(
        rows, count, (-again / safe)[:, None], (image.double() / safe)[:, None], 1.0
    )
    further = scaled[:, 0].to(image.dtype)
    row = count.clamp(max=columns)
    basis[samples, row] = torch.where(going_on[:, None], further, basis[samples, row])
    stored = table.vectors[:, Vector.ALONG_START]
    before = torch.where(held, again * stored, 0.0).sum(1)
    along = (products.dot(image, torch.where(probing[:, None], start, 0.0)) - before)[
        :, None
    ] / safe
    placed = going_on[:, None] & (place == count[:, None])
    stored.copy_(torch.where(placed, along, stored))
    probe = start + scale[:, None].to(start.dtype) * further
    moved = torch.where(ending[:, None], minimiser, probe).to(z.dtype)
    z.copy_(torch.where((ending | going_on)[:, None], moved, z))


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
    for j in range(column.shape[1] - 1):
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
    """The tolerance at the minimiser w, with ‖f(w)‖ ≥ ‖w‖ − ‖r‖ and w = w₀ + Σ y_j v_j.

    ‖w‖² is taken in units of t, where no size of the state makes it leave the range of float64.
    """
    scale = table.numbers[:, Number.SCALE]
    start = table.numbers[:, Number.START_NORM] / scale
    y = table.vectors[:, Vector.SOLUTION] / scale[:, None]
    along = table.vectors[:, Vector.ALONG_START] / scale[:, None]
    held = torch.arange(y.shape[1], device=y.device) < known[:, None]
    change = torch.where(held, y * (2.0 * along + y), 0.0).sum(1)
    w_norm = scale * (start.square() + change).clamp(min=0.0).sqrt()
    return atol + rtol * (w_norm - predicted).clamp(min=0.0)
