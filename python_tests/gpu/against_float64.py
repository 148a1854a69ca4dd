"""Ops on an engine against the PyTorch reference in float64 on the CPU, from the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deq_kernels.ops import OPS, broyden, damped, low_rank
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import Counter, Norm, Status
from python_tests.gpu.engines import CPU, Engine
from python_tests.gpu.states import (
    DIVERGENCE_FACTOR,
    RTOL,
    STALL_STEPS,
    StepState,
    copy_to,
    in_float64,
)
from python_tests.tolerances import RELATIVE, assert_close

Layout = Callable[[Tensor], Tensor]
STOPPING = {"rtol": RTOL, "atol": 0.0, "stall_steps": STALL_STEPS}
STOPPING["divergence_factor"] = DIVERGENCE_FACTOR
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_it_is(tensor: Tensor) -> Tensor:
    """The layout that leaves a tensor as it is."""
    return tensor


def coarser(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """The dtype with fewer digits."""
    return max(first, second, key=lambda dtype: RELATIVE[dtype])


def bits(tensor: Tensor) -> Tensor:
    """A floating tensor as integers, in which a NaN equals itself."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors hold the same bits, NaN included."""
    if actual.is_floating_point():
        actual, expected = bits(actual), bits(expected)
    return torch.equal(actual, expected)


def check_broyden_step(
    engine: Engine,
    start: StepState,
    *,
    damping: float = 0.9,
    finish_inverse: bool = True,
    layout: Layout = as_it_is,
    f_layout: Layout = as_it_is,
) -> StepState:
    """Take one step from `start` and hold every tensor it may write against the reference.

    Args:
        engine: what the step runs on.
        start: the state before, on the CPU; not modified.
        damping: step length.
        finish_inverse: see `broyden.step_`.
        layout: makes the directions of those on the engine's device.
        f_layout: the same for f(z).

    Returns:
        The state after, on the CPU.
    """
    options: dict[str, Any] = {**STOPPING, "damping": damping, "gamma": 0.8}
    options["finish_inverse"] = finish_inverse
    given = copy_to(start, engine.device)
    assert given.directions is not None
    given = replace(given, directions=layout(given.directions), f_z=f_layout(given.f_z))
    broyden.step_(given.f_z, given.z, given.best_z, given.history(), given.tables, **options)
    after = copy_to(given, CPU)

    expected = in_float64(start)
    OPS["broyden_step_"].reference(
        *(expected.f_z, expected.z, expected.best_z, expected.directions, expected.algebra),
        *(expected.record, expected.counters, expected.active, expected.history().scratch),
        **options,
    )
    _check_state(after, expected, start)
    _check_history(after, expected, start, damping=damping)
    return after


def check_damped_step(
    engine: Engine, start: StepState, *, damping: float = 0.7, f_layout: Layout = as_it_is
) -> StepState:
    """The same for one damped step."""
    given = copy_to(start, engine.device)
    f_z = f_layout(given.f_z)
    scratch = given.scratch()
    options: dict[str, Any] = {**STOPPING, "damping": damping}
    damped.step_(f_z, given.z, given.best_z, given.tables, scratch, **options)
    after = copy_to(given, CPU)

    expected = in_float64(start)
    OPS["damped_step_"].reference(
        *(expected.f_z, expected.z, expected.best_z),
        *(expected.record, expected.counters, expected.active, expected.scratch()),
        **options,
    )
    _check_state(after, expected, start)
    running = after.counters[:, Counter.STATUS] == Status.RUNNING
    assert_close(after.z[running], expected.z[running], start.z.dtype)
    return after


def _check_state(after: StepState, expected: StepState, start: StepState) -> None:
    """What every kind of step leaves: the verdicts, the norms, the best iterates."""
    stopped = expected.counters[:, Counter.STATUS] != Status.RUNNING
    counters = [state.counters.clone() for state in (after, expected)]
    record = [state.record.clone() for state in (after, expected)]
    # Nobody reads the progress marks of a sample that has stopped.
    for table, column in ((counters, Counter.PROGRESS_STEP), (record, Norm.PROGRESS)):
        for tensor in table:
            tensor[stopped, column] = 0
    assert torch.equal(*counters)
    assert torch.equal(after.active, expected.active)
    accum = accumulate_dtype(start.z.dtype)
    torch.testing.assert_close(*record, rtol=RELATIVE[accum], atol=0.0, equal_nan=True)
    # Iterates are copied, never computed.
    assert same_bits(after.best_z, expected.best_z.to(start.z.dtype))
    frozen = start.counters[:, Counter.STATUS] != Status.RUNNING
    for name in ("z", "best_z", "record", "counters", "directions", "algebra"):
        now, before = getattr(after, name), getattr(start, name)
        assert now is None or same_bits(now[frozen], before[frozen]), name


def _check_history(
    after: StepState, expected: StepState, start: StepState, *, damping: float
) -> None:
    """What a Broyden step stores, and the iterate it moves to along what it stored."""
    assert after.directions is not None
    assert after.algebra is not None
    assert start.directions is not None
    assert expected.directions is not None
    assert expected.algebra is not None
    dtype, history_dtype = start.z.dtype, start.directions.dtype
    status, count = expected.counters[:, Counter.STATUS], expected.counters[:, Counter.COUNT]
    before = start.counters[:, Counter.COUNT]
    accum = accumulate_dtype(dtype)
    for sample in range(len(count)):
        stored = int(count[sample])
        frozen = start.counters[sample, Counter.STATUS] != Status.RUNNING
        # A history that was full or given up starts again in row 0.
        extended = not frozen and stored > 0 and stored != int(before[sample])
        row = stored - 1
        others = [j for j in range(start.directions.shape[1]) if not (extended and j == row)]
        assert same_bits(after.directions[sample, others], start.directions[sample, others])
        if not extended:
            if status[sample] == Status.RUNNING:  # sent back to its best iterate
                assert same_bits(after.z[sample], start.best_z[sample])
            else:
                assert same_bits(after.z[sample], start.z[sample])
            continue
        p = after.directions[sample, row].double()
        assert_close(p, expected.directions[sample, row], coarser(dtype, history_dtype))
        if status[sample] == Status.RUNNING:
            # Along the direction as stored, so that the inverse matches the step.
            assert_close(after.z[sample], start.z[sample].double() + damping * p, dtype)
        else:
            assert same_bits(after.z[sample], start.z[sample])
        gram = slice(0, row)
        assert_close(after.algebra[sample, gram, gram], expected.algebra[sample, gram, gram], accum)
        steps, weights = -2, -1
        assert torch.equal(after.algebra[sample, : row + 1, steps], _row_of(damping, row + 1))
        assert_close(
            after.algebra[sample, gram, weights], expected.algebra[sample, gram, weights], accum
        )


def _row_of(value: float, length: int) -> Tensor:
    return torch.full((length,), value, dtype=torch.float64)


def check_broyden_product(
    engine: Engine,
    history: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    *,
    transpose: bool,
    layout: Layout = as_it_is,
) -> Tensor:
    """Multiply with the inverse in product form; returns the product on the CPU."""
    directions, algebra, rank = history
    arguments = [tensor.to(engine.device) for tensor in (algebra, rank, x)]
    product = broyden.matvec(
        layout(directions.to(engine.device)), *arguments, scale=-0.6, transpose=transpose
    )
    expected = OPS["broyden_matvec"].reference(
        directions.double(), algebra, rank, x.double(), -0.6, transpose
    )
    assert product.dtype == x.dtype
    # Sample by sample, since one's scale says nothing about another.
    for now, reference in zip(product.cpu(), expected, strict=True):
        assert_close(now, reference, x.dtype)
    return product.cpu()


def check_low_rank_product(
    engine: Engine,
    factors: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    *,
    layout: Layout = as_it_is,
) -> Tensor:
    """Multiply with the inverse in sum form, and with its transpose; returns both on the CPU."""
    u, v, rank = factors
    own_u, own_v = layout(u.to(engine.device)), layout(v.to(engine.device))
    own_rank, own_x = rank.to(engine.device), x.to(engine.device)
    reference = OPS["low_rank_matvec"].reference
    products = []
    for multiply, left, right in ((low_rank.matvec, u, v), (low_rank.rmatvec, v, u)):
        product = multiply(own_u, own_v, own_rank, own_x, scale=-0.6).cpu()
        expected = reference(left.double(), right.double(), rank, x.double(), -0.6)
        for now, wanted in zip(product, expected, strict=True):
            assert_close(now, wanted, x.dtype)
        products.append(product)
    return torch.stack(products)


def check_low_rank_append(
    engine: Engine,
    factors: tuple[Tensor, Tensor, Tensor],
    s: Tensor,
    y: Tensor,
    *,
    layout: Layout = as_it_is,
) -> tuple[Tensor, Tensor]:
    """Append a pair to every sample; returns the factors on the CPU."""
    u, v, rank = (tensor.clone() for tensor in factors)
    own_u, own_v = layout(u.to(engine.device)), layout(v.to(engine.device))
    own_rank = rank.to(engine.device, copy=True)
    appended = low_rank.append_(
        own_u, own_v, own_rank, s.to(engine.device), y.to(engine.device), scale=-0.6
    )
    wide_u, wide_v = u.to(torch.float64, copy=True), v.to(torch.float64, copy=True)
    wanted = OPS["low_rank_append_"].reference(wide_u, wide_v, rank, s.double(), y.double(), -0.6)
    assert torch.equal(appended.cpu(), wanted)
    assert torch.equal(own_rank.cpu(), rank)
    dtype = coarser(s.dtype, u.dtype)
    for now, expected, before in ((own_u, wide_u, factors[0]), (own_v, wide_v, factors[1])):
        for sample in range(len(s)):
            row = int(rank[sample]) - 1
            new = [row] if wanted[sample] else []
            others = [j for j in range(u.shape[1]) if j not in new]
            assert same_bits(now[sample, others].cpu(), before[sample, others])
            for j in new:
                assert_close(now[sample, j].cpu(), expected[sample, j], dtype)
    return own_u.cpu(), own_v.cpu()


def check_neumann_step(
    engine: Engine, vjp: Tensor, cotangent: Tensor, w: Tensor, *, damping: float = 0.3
) -> Tensor:
    """One step of the damped Neumann series; returns w on the CPU."""
    own_w = w.to(engine.device, copy=True)
    norms = torch.empty(len(w), 2, dtype=torch.float64, device=engine.device)
    damped.neumann_step_(
        vjp.to(engine.device), cotangent.to(engine.device), own_w, norms, damping=damping
    )
    wide = w.to(torch.float64, copy=True)
    wanted = torch.empty(len(w), 2, dtype=torch.float64)
    OPS["neumann_step_"].reference(vjp.double(), cotangent.double(), wide, wanted, damping)
    assert_close(own_w.cpu(), wide, w.dtype)
    torch.testing.assert_close(
        norms.cpu(), wanted, rtol=RELATIVE[accumulate_dtype(w.dtype)], atol=0.0
    )
    return own_w.cpu()
