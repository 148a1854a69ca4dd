"""The iteration of the dense cell in Triton: all steps of a tile of rows in one program.

Formulas: docs/algebra.md, section 3. Reference: deq_kernels/ops/cells/reference.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deq_kernels.ops.arguments import steps_of
from deq_kernels.ops.cells import reference
from deq_kernels.ops.cells.norms import NormKind
from deq_kernels.ops.cells.triton_activations import activate
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.triton_support.launch import (
    REGISTERS,
    alignment,
    check_device,
    device_of,
    kernel,
    stride,
)
from deq_kernels.ops.triton_support.termination import (
    BEST,
    CONVERGED,
    COUNTERS,
    DIVERGED,
    FIRST,
    INFINITY,
    MARKED_IMAGE,
    MARKED_RESIDUAL,
    MAX_STEPS,
    NORMS,
    PROGRESS,
    PROGRESS_STEP,
    REJECTIONS,
    RUNNING,
    STATUS,
    STEPS,
    decide,
    first_marks,
    follow_growth,
    meets_tolerance,
)
from deq_kernels.ops.triton_support.values import option, rounded

ROWS = 16
"""Rows of a tile: the fewest that a product of blocks takes."""

COLUMNS = 32
"""Columns of f(z) at a time."""

DEPTH = {tl.float32: 32, tl.float64: 16}
"""Terms of their sums at a time: 128 bytes of a row of z, and what fits the registers."""

CHAIN = 64
"""Terms that are added up by themselves before they meet the rest: a chain of all terms rounds too
often, each time by the size of what it has come to."""

MAX_REJECTIONS = tl.constexpr(0)
LEAST_ANGLE = tl.constexpr(reference.LEAST_ANGLE)
LEAST_LENGTH = tl.constexpr(reference.LEAST_LENGTH)


@triton.jit
def _apply(
    iterate: tl.tensor,  # [ROWS, 1] pointers, where the rows of z start
    scale: tl.tensor,  # [ROWS, 1] pointers
    weight: tl.tensor,
    weight_stride: tl.tensor,
    column: tl.tensor,  # [COLUMNS]
    columns: tl.tensor,  # bool [COLUMNS], which of them exist
    exists: tl.tensor,  # bool [ROWS, 1]
    dim: tl.tensor,
    SCALED: tl.constexpr,
    DENSE_K: tl.constexpr,
    ACCUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tensor:
    """Columns of (c z) Vᵀ, [ROWS, COLUMNS]; the order of its sums depends on dim alone."""
    product = tl.zeros((ROWS, COLUMNS), ACCUM)
    # A block product goes on with the chain of multiply-adds that it is given.
    chain = product
    for begin in range(0, dim, DEPTH):
        k = tl.multiple_of(begin + tl.arange(0, DEPTH), DEPTH)
        within = tl.arange(0, DEPTH) < tl.multiple_of(dim - begin, ALIGN)
        inside = exists & within[None, :]
        x = tl.load(iterate + k[None, :], mask=inside, other=0.0)
        if SCALED:
            x *= tl.load(scale + k[None, :], mask=inside, other=0.0).to(ACCUM)
        # Vᵀ [k, column], read along whichever of the two is dense.
        if DENSE_K:
            pointers = weight + tl.multiple_of(column * weight_stride, ALIGN)[None, :] + k[:, None]
        else:
            pointers = weight + tl.multiple_of(k * weight_stride, ALIGN)[:, None] + column[None, :]
        v = tl.load(pointers, mask=within[:, None] & columns[None, :], other=0.0).to(ACCUM)
        chain = tl.dot(x, v, chain, input_precision="ieee", out_dtype=ACCUM)
        if (begin + DEPTH) % CHAIN == 0:
            product += chain
            chain = tl.zeros((ROWS, COLUMNS), ACCUM)
    return product + chain


@triton.jit
def _measure(
    x: tl.tensor,  # [ROWS, COLUMNS]
    before: tl.tensor,  # float64 [ROWS]
    norm: tl.tensor,
) -> tl.tensor:
    """The squared norm of more columns of each row, added to that of those before.

    Of the max norm the square of the largest magnitude. NaN remains NaN.
    """
    x = tl.abs(x.to(tl.float64))
    if norm == 0:
        total = before + tl.sum(x * x, 1)
    else:
        largest = tl.max(x, 1)
        total = tl.where(largest * largest > before, largest * largest, before)
        # A maximum passes over NaN.
        total += tl.sum(tl.where(x == x, 0.0, x), 1)
    return total


@triton.jit
def _least_residual(
    r: tl.tensor,  # [ROWS, 1] pointers
    combined: tl.tensor,  # [ROWS, 1] pointers, of o
    combined_earlier: tl.tensor,  # [ROWS, 1] pointers, of o'
    known: tl.tensor,  # [ROWS], how many of them there are
    advance: tl.tensor,  # bool [ROWS]
    dim: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tl.tuple:
    """(share, momentum) of the least combined residual, float64 [ROWS], and what is still known.

    Both are 0 where there is none. In a pass of its own: beside the product its sums would not fit
    the registers.
    """
    tl.debug_barrier()
    uu = tl.zeros((ROWS,), tl.float64)
    uv = tl.zeros((ROWS,), tl.float64)
    vv = tl.zeros((ROWS,), tl.float64)
    ur = tl.zeros((ROWS,), tl.float64)
    one, two = (advance & (known > 0))[:, None], (advance & (known > 1))[:, None]
    for begin in range(0, dim, COLUMNS):
        column = tl.multiple_of(begin + tl.arange(0, COLUMNS), COLUMNS)[None, :]
        columns = (tl.arange(0, COLUMNS) < tl.multiple_of(dim - begin, ALIGN))[None, :]
        residual = tl.load(r + column, mask=one & columns, other=0.0)
        o = tl.load(combined + column, mask=one & columns, other=0.0)
        o_earlier = tl.load(combined_earlier + column, mask=two & columns, other=0.0)
        u, v = (o - residual).to(tl.float64), (o_earlier - o).to(tl.float64)
        uu += tl.sum(u * u, 1)
        uv += tl.sum(u * v, 1)
        vv += tl.sum(v * v, 1)
        ur += tl.sum(u * residual.to(tl.float64), 1)
    # o is orthogonal to v, so that <v, r> = -<u, v>.
    product = uu * vv
    determinant = product - uv * uv
    independent = (known > 1) & (determinant > product * LEAST_ANGLE)
    divisor = tl.where(independent, determinant, tl.where(uu == 0.0, 1.0, uu))
    share = tl.where(independent, -ur * vv - uv * uv, -ur) / divisor
    momentum = tl.where(independent, uv * (uu + ur), 0.0) / divisor
    usable = (known > 0) & (uu > 0.0) & (tl.abs(share) < INFINITY) & (tl.abs(momentum) < INFINITY)
    usable = usable & (tl.abs(1.0 - share) >= LEAST_LENGTH)
    known = tl.where(usable, known, 0)
    return tl.where(usable, share, 0.0), tl.where(usable, momentum, 0.0), known


@triton.jit
def _combine(
    here: tl.tensor,  # [ROWS, 1] pointers, where the rows of z start
    earlier: tl.tensor,  # [ROWS, 1] pointers, of z'
    there: tl.tensor,  # [ROWS, 1] pointers, of the next z; may be those of z'
    r: tl.tensor,  # [ROWS, 1] pointers
    combined: tl.tensor,  # [ROWS, 1] pointers, of o
    combined_earlier: tl.tensor,  # [ROWS, 1] pointers, of o', and of the next o
    share: tl.tensor,  # [ROWS]
    momentum: tl.tensor,  # [ROWS]
    step_length: tl.tensor,
    advance: tl.tensor,  # bool [ROWS]
    dim: tl.tensor,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """there <- z + damping (1 - share) r + momentum (z' - z), and the combined residual of it.

    What a weight of zero belongs to is not read: it may not be there.
    """
    # What other threads have yet to read is written here.
    tl.debug_barrier()
    a, b = share[:, None], momentum[:, None]
    for begin in range(0, dim, COLUMNS):
        column = tl.multiple_of(begin + tl.arange(0, COLUMNS), COLUMNS)[None, :]
        columns = tl.arange(0, COLUMNS) < tl.multiple_of(dim - begin, ALIGN)
        inside = advance[:, None] & columns[None, :]
        shared, moving = inside & ((a != 0.0) | (b != 0.0)), inside & (b != 0.0)
        residual = tl.load(r + column, mask=inside, other=0.0)
        o = tl.load(combined + column, mask=shared, other=0.0)
        o_earlier = tl.load(combined_earlier + column, mask=moving, other=0.0)
        towards = residual + tl.where(a == 0.0, 0.0, a * (o - residual))
        towards += tl.where(b == 0.0, 0.0, b * (o_earlier - o))
        tl.store(combined_earlier + column, towards, mask=inside)
        z = tl.load(here + column, mask=inside, other=0.0)
        z_earlier = tl.load(earlier + column, mask=moving, other=0.0)
        ahead = z + step_length * (1.0 - a) * residual
        ahead += tl.where(b == 0.0, 0.0, b * (z_earlier - z))
        tl.store(there + column, ahead, mask=inside)


@triton.jit
def _evaluate(
    here: tl.tensor,  # [ROWS, 1] pointers, where the rows of z start
    to: tl.tensor,  # [ROWS, 1] pointers, of r, or of the damped steps
    bias: tl.tensor,  # [ROWS, 1] pointers
    scale: tl.tensor,  # [ROWS, 1] pointers
    weight: tl.tensor,
    weight_stride: tl.tensor,
    running: tl.tensor,  # bool [ROWS]
    activation: tl.tensor,
    norm: tl.tensor,
    step_length: tl.tensor,
    dim: tl.tensor,
    SCALED: tl.constexpr,
    DENSE_K: tl.constexpr,
    ACCELERATE: tl.constexpr,
    ACCUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
    ALIGN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """to <- f(z) - z, or z + damping (f(z) - z); ‖f(z) − z‖² and ‖f(z)‖², [ROWS] float64."""
    alive = running[:, None]
    residual_sq = tl.zeros((ROWS,), tl.float64)
    f_sq = tl.zeros((ROWS,), tl.float64)
    # What was written by other threads is read now.
    tl.debug_barrier()
    for begin in range(0, dim, COLUMNS):
        column = tl.multiple_of(begin + tl.arange(0, COLUMNS), COLUMNS)
        columns = tl.arange(0, COLUMNS) < tl.multiple_of(dim - begin, ALIGN)
        inside = alive & columns[None, :]
        f = _apply(
            *(here, scale, weight, weight_stride, column, columns, alive, dim),
            *(SCALED, DENSE_K, ACCUM, ROWS, COLUMNS, DEPTH, CHAIN, ALIGN),
        )
        f += tl.load(bias + column[None, :], mask=inside, other=0.0).to(ACCUM)
        f = tl.where(inside, activate(f, activation), 0.0)
        before = tl.load(here + column[None, :], mask=inside, other=0.0)
        r = f - before
        residual_sq = _measure(r, residual_sq, norm)
        f_sq = _measure(f, f_sq, norm)
        if ACCELERATE:
            tl.store(to + column[None, :], r, mask=inside)
        else:
            # A full step lands on f(z) itself, without rounding.
            moved = tl.where(step_length == 1.0, f, before + step_length * r)
            tl.store(to + column[None, :], moved, mask=inside)
    return residual_sq, f_sq


@triton.jit
def _copy(
    source: tl.tensor,  # [ROWS, 1] pointers
    to: tl.tensor,  # [ROWS, 1] pointers
    rows: tl.tensor,  # bool [ROWS]: those that are copied
    dim: tl.tensor,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """to <- source, rounded to the type of `to`."""
    for begin in range(0, dim, COLUMNS):
        column = tl.multiple_of(begin + tl.arange(0, COLUMNS), COLUMNS)
        columns = tl.arange(0, COLUMNS) < tl.multiple_of(dim - begin, ALIGN)
        inside = rows[:, None] & columns[None, :]
        x = tl.load(source + column[None, :], mask=inside, other=0.0)
        tl.store(to + column[None, :], rounded(x, to), mask=inside)


@kernel
def _iterate(
    weight: tl.tensor,  # [dim, dim]
    weight_stride: tl.tensor,  # of the dimension that is not dense
    bias: tl.tensor,  # [samples, dim], rows bias_stride apart
    bias_stride: tl.tensor,
    scale: tl.tensor,  # [samples, dim], rows scale_stride apart
    scale_stride: tl.tensor,
    z: tl.tensor,  # [samples, dim]
    iterates: tl.tensor,  # ACCUM [3, samples, dim]: of each row this one, the next and the best
    lasts: tl.tensor,  # ACCUM [3, samples, dim]: r, and o and o' in two halves that take turns
    record: tl.tensor,  # float64 [samples, NORMS + max_steps]
    counters: tl.tensor,  # int64 [samples, COUNTERS]
    active: tl.tensor,  # int64 [1]
    samples: tl.tensor,
    dim: tl.tensor,
    max_steps: tl.tensor,
    activation: tl.tensor,
    norm: tl.tensor,
    rtol: tl.float64,
    atol: tl.float64,
    damping: tl.float64,
    stall_steps: tl.tensor,
    divergence_factor: tl.float64,
    fixed_steps: tl.tensor,
    SCALED: tl.constexpr,
    DENSE_K: tl.constexpr,
    ACCELERATE: tl.constexpr,
    ACCUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHAIN: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < samples
    # Hints are about what an operation yields.
    weight_stride = tl.multiple_of(weight_stride.to(tl.int64), ALIGN)
    bias += tl.multiple_of(row * bias_stride, ALIGN)[:, None]
    scale += tl.multiple_of(row * scale_stride, ALIGN)[:, None]
    place = tl.multiple_of(row * dim, ALIGN)[:, None]
    record += row * (max_steps + NORMS)
    counters += row * COUNTERS

    step = tl.load(counters + STEPS, mask=exists, other=0)
    # A row whose counter is out of range is skipped: an error would need a wait for the device.
    running = (tl.load(counters + STATUS, mask=exists, other=1) == RUNNING) & (step >= 0)
    started = running
    rejections = tl.load(counters + REJECTIONS, mask=exists, other=0)
    first = tl.load(record + FIRST, mask=exists, other=0.0)
    best = tl.load(record + BEST, mask=exists, other=0.0)
    mark = tl.load(record + PROGRESS, mask=exists, other=0.0)
    marked_step = tl.load(counters + PROGRESS_STEP, mask=exists, other=0)
    status = tl.where(running, RUNNING, MAX_STEPS)
    # Which of its three iterates each row is at, which is the one before, and which the best.
    now = tl.zeros((ROWS,), tl.int32)
    previous = now
    kept = now
    size = tl.multiple_of(samples.to(tl.int64) * dim, ALIGN)
    # Of the step before: the residual it started from, and whether it was more than the damped one;
    # how many of o and o' there are, and which half of `lasts` has o.
    last_residual = tl.zeros((ROWS,), tl.float64)
    combined = exists & (row < 0)
    known = tl.zeros((ROWS,), tl.int32)
    half = 0
    step_length = option(damping, ACCUM)

    _copy(z + place, iterates + place, exists, dim, COLUMNS, ALIGN)

    while tl.max(running.to(tl.int32), 0) > 0:
        # The one that is neither; the next round over where both are the same.
        after = tl.where(now == kept, (now + 1) % 3, 3 - now - kept)
        here = iterates + (tl.multiple_of(now * size, ALIGN)[:, None] + place)
        there = iterates + (tl.multiple_of(after * size, ALIGN)[:, None] + place)
        this_r = lasts + place
        residual_sq, f_sq = _evaluate(
            here,
            this_r if ACCELERATE else there,
            bias,
            scale,
            weight,
            weight_stride,
            running,
            activation,
            norm,
            step_length,
            dim,
            SCALED,
            DENSE_K,
            ACCELERATE,
            ACCUM,
            ROWS,
            COLUMNS,
            DEPTH,
            CHAIN,
            ALIGN,
        )
        residual, f_norm = tl.sqrt(residual_sq), tl.sqrt(f_sq)
        finite = (residual < INFINITY) & (f_norm < INFINITY)
        tl.store(record + (NORMS + step), residual, mask=running & (step < max_steps))
        # In registers from step to step the marks would take the place of what products need.
        marked_image = tl.load(record + MARKED_IMAGE, mask=running, other=0.0)
        marked_residual = tl.load(record + MARKED_RESIDUAL, mask=running, other=0.0)
        if fixed_steps != 0:
            first = tl.where(running & (step == 0), residual, first)
            best = tl.where(running, residual, best)
            mark = tl.where(running, residual, mark)
            verdict = tl.where(finite, MAX_STEPS, DIVERGED)
            marks = first_marks(step == 0, f_norm, (marked_image, marked_residual))
            met = finite & meets_tolerance(residual, f_norm, first, marks, rtol, atol)
            marks = follow_growth(residual, f_norm, marks, finite & (met == 0))
            verdict = tl.where(met, CONVERGED, verdict)
            verdict = tl.where(step + 1 >= max_steps, verdict, RUNNING)
            now = tl.where(running, after, now)
            kept = now
        else:
            verdict, tables, improved, _, _, back = decide(
                residual,
                f_norm,
                finite,
                step,
                rejections,
                (first, best, mark, marked_step, (marked_image, marked_residual)),
                max_steps,
                rtol,
                atol,
                stall_steps,
                divergence_factor,
                MAX_REJECTIONS,
                combined,
                last_residual,
            )
            first = tl.where(running, tables[0], first)
            best = tl.where(running, tables[1], best)
            mark = tl.where(running, tables[2], mark)
            marked_step = tl.where(running, tables[3], marked_step)
            marks = tables[4]
            kept = tl.where(running & improved, now, kept)
            advance = running & (verdict == RUNNING)
            landed = after
            if ACCELERATE:
                onwards = advance & (back == 0)
                last_o = lasts + (tl.multiple_of((1 + half) * size, ALIGN) + place)
                earlier_o = lasts + (tl.multiple_of((2 - half) * size, ALIGN) + place)
                share, momentum, known = _least_residual(
                    *(this_r, last_o, earlier_o, known, onwards, dim, ROWS, COLUMNS, ALIGN)
                )
                _combine(
                    here,
                    iterates + (tl.multiple_of(previous * size, ALIGN)[:, None] + place),
                    there,
                    this_r,
                    last_o,
                    earlier_o,
                    share.to(ACCUM),
                    momentum.to(ACCUM),
                    step_length,
                    onwards,
                    dim,
                    COLUMNS,
                    ALIGN,
                )
                landed = tl.where(back, previous, after)
                previous = now
                last_residual = residual
                combined = onwards & ((share != 0.0) | (momentum != 0.0))
                known = tl.where(back, 0, tl.minimum(known + 1, 2))
                half = 1 - half
            now = tl.where(advance, landed, now)
        tl.debug_barrier()  # one thread writes what every thread has read, and reads again
        tl.store(record + MARKED_IMAGE, marks[0], mask=running)
        tl.store(record + MARKED_RESIDUAL, marks[1], mask=running)
        tl.debug_barrier()
        step += running.to(tl.int64)
        status = tl.where(running, verdict, status)
        running = running & (verdict == RUNNING)

    tl.debug_barrier()
    tl.store(counters + STATUS, status.to(tl.int64), mask=started)
    tl.store(counters + STEPS, step, mask=started)
    tl.store(counters + PROGRESS_STEP, marked_step, mask=started)
    tl.store(record + FIRST, first, mask=started)
    tl.store(record + BEST, best, mask=started)
    tl.store(record + PROGRESS, mark, mask=started)
    tl.atomic_add(active, -tl.sum(started.to(tl.int64), 0), sem="relaxed")
    result = iterates + (tl.multiple_of(kept * size, ALIGN)[:, None] + place)
    _copy(result, z + place, started, dim, COLUMNS, ALIGN)


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
    """z ← z + λ (f(z) − z) until all samples have stopped; see `deq_kernels.ops.cells.iterate_`.

    Samples of several rows, and with them all graphs, take the reference.
    """
    if crow is not None or sample_ptr is not None:
        reference.iterate_(
            *(weight, crow, col, values, sample_ptr, bias, scale, z, record, counters, active),
            activation=activation,
            rtol=rtol,
            atol=atol,
            damping=damping,
            norm=norm,
            stall_steps=stall_steps,
            divergence_factor=divergence_factor,
            fixed_steps=fixed_steps,
            accelerate=accelerate,
        )
        return
    max_steps = steps_of(record)
    # By rows, where each row is a sample.
    norm = int(NormKind.TWO) if norm == NormKind.ROWS else norm
    tables = {"record": record, "counters": counters, "active": active}
    others = {} if scale is None else {"scale": scale}
    check_device("z", z, weight=weight, bias=bias, **others, **tables)
    rows, dim = z.shape
    if rows == 0:
        return
    if 1 not in weight.stride():
        weight = weight.contiguous()
    dense_k = weight.stride(1) == 1
    weight_stride = stride(weight, 0 if dense_k else 1)
    bias_stride = stride(bias, 0)
    scale_stride = 0 if scale is None else stride(scale, 0)
    accum = accumulate_dtype(z.dtype)
    iterates = z.new_empty((3, rows, dim), dtype=accum)
    lasts = z.new_empty((3, rows, dim), dtype=accum) if accelerate else iterates
    sums = tl.float64 if accum == torch.float64 else tl.float32
    align = alignment(dim, weight_stride, bias_stride, scale_stride)
    # Narrow loads take a register for every address, and float64 two.
    warps = 4 if align == 8 and sums == tl.float32 else 8
    with device_of(z):
        _iterate[(triton.cdiv(rows, ROWS),)](
            *(weight, weight_stride, bias, bias_stride),
            *(bias if scale is None else scale, scale_stride),
            *(z, iterates, lasts, record, counters, active, rows, dim, max_steps),
            *(activation, norm, rtol, atol, damping, stall_steps, divergence_factor),
            int(fixed_steps),
            SCALED=scale is not None,
            DENSE_K=dense_k,
            ACCELERATE=accelerate,
            ACCUM=sums,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            DEPTH=DEPTH[sums],
            CHAIN=CHAIN,
            ALIGN=align,
            num_warps=warps,
            num_stages=1,  # what is loaded ahead would spill
            maxnreg=REGISTERS[sums],
        )


KERNELS: dict[str, Callable[..., Any]] = {"cells_iterate_": iterate_}
