"""Ops on an engine against the PyTorch reference in float64 on the CPU, from the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import OPS, anderson, broyden, damped, gmres, low_rank
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import Counter, Norm, Status
from python_tests.gpu.engines import CPU, Engine
from python_tests.gpu.states import (
    DIVERGENCE_FACTOR,
    RTOL,
    STALL_STEPS,
    CellState,
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
    drop_oldest: bool = False,
    estimate_gamma: bool = False,
    max_backtracks: int = 0,
    layout: Layout = as_it_is,
    f_layout: Layout = as_it_is,
) -> StepState:
    """Take one step from `start` and hold every tensor it may write against the reference.

    Args:
        engine: what the step runs on.
        start: the state before, on the CPU; not modified.
        damping: step length.
        finish_inverse: see `broyden.step_`, as for the next three.
        drop_oldest: drop instead of restarting.
        estimate_gamma: estimate the initial scale.
        max_backtracks: search along the direction.
        layout: makes the directions of those on the engine's device.
        f_layout: the same for f(z).

    Returns:
        The state after, on the CPU.
    """
    options: dict[str, Any] = {**STOPPING, "damping": damping, "gamma": 0.8}
    options |= {"finish_inverse": finish_inverse, "drop_oldest": drop_oldest}
    options |= {"estimate_gamma": estimate_gamma, "max_backtracks": max_backtracks}
    given = copy_to(start, engine.device)
    assert given.directions is not None
    given = replace(given, directions=layout(given.directions), f_z=f_layout(given.f_z))
    broyden.step_(given.f_z, given.z, given.best_z, given.history(), given.tables, **options)
    after = copy_to(given, CPU)

    expected = in_float64(start)
    states = expected.f_z, expected.z, expected.best_z
    with dk.use_backend("reference"):
        broyden.step_(*states, expected.history(), expected.tables, **options)
    _check_state(after, expected, start)
    _check_history(after, expected, start, damping=damping)
    return after


def check_anderson_step(
    engine: Engine,
    start: StepState,
    *,
    damping: float = 0.9,
    regularization: float = 0.1,
    layout: Layout = as_it_is,
    f_layout: Layout = as_it_is,
) -> StepState:
    """Take one step from `start` and hold every tensor it may write against float64 algebra.

    Args:
        engine: what the step runs on.
        start: the state before, on the CPU; not modified.
        damping: β.
        regularization: the ridge relative to ‖r‖²; large enough that the weights are not all lost
            to rounding where there are more changes than elements.
        layout: makes the changes of those on the engine's device.
        f_layout: the same for f(z).

    Returns:
        The state after, on the CPU.
    """
    options = {**STOPPING, "damping": damping, "regularization": regularization}
    given = copy_to(start, engine.device)
    assert given.residual_changes is not None
    assert given.image_changes is not None
    given = replace(
        given,
        residual_changes=layout(given.residual_changes),
        image_changes=layout(given.image_changes),
        f_z=f_layout(given.f_z),
    )
    anderson.step_(given.f_z, given.z, given.best_z, given.window(), given.tables, **options)
    after = copy_to(given, CPU)

    expected = in_float64(start)
    window = expected.window()
    states = expected.f_z, expected.z, expected.best_z
    with dk.use_backend("reference"):
        anderson.step_(*states, window, expected.tables, **options)
    _check_state(after, expected, start)
    _check_window(after, start, damping=damping, regularization=regularization)
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
    states = expected.f_z, expected.z, expected.best_z
    with dk.use_backend("reference"):
        damped.step_(*states, expected.tables, expected.scratch(), **options)
    _check_state(after, expected, start)
    running = after.counters[:, Counter.STATUS] == Status.RUNNING
    assert_close(after.z[running], expected.z[running], start.z.dtype)
    return after


def check_gmres_step(
    engine: Engine, start: StepState, *, columns: int = 4, f_layout: Layout = as_it_is
) -> StepState:
    """The same for two steps of GMRES: the end of a cycle, and the image that follows it."""
    given, expected = copy_to(start, engine.device), in_float64(start)
    cycles = gmres.Cycles.new(given.z, columns)
    wide = gmres.Cycles.new(expected.z, columns)
    gain = torch.linspace(-0.8, 0.7, start.z.shape[1], dtype=torch.float64)

    def step(f_z: Tensor, wide_f_z: Tensor) -> StepState:
        gmres.step_(f_layout(f_z), given.z, given.best_z, cycles, given.tables, **STOPPING)
        with dk.use_backend("reference"):
            gmres.step_(wide_f_z, expected.z, expected.best_z, wide, expected.tables, **STOPPING)
        return copy_to(given, CPU)

    def affine(z: Tensor) -> Tensor:
        return start.f_z.double() + gain * (z.double() - start.z.double())

    after = step(given.f_z, expected.f_z)
    _check_state(after, expected, start)
    running = after.counters[:, Counter.STATUS] == Status.RUNNING
    begun = after.counters[:, Counter.COUNT] == 1
    assert (begun & running).any()
    assert_close(after.z[running], expected.z[running], start.z.dtype)

    stopped = copy_to(after, CPU)
    f_z = affine(after.z).to(start.z.dtype)
    after = step(f_z.to(engine.device), affine(expected.z))
    assert torch.equal(after.counters, expected.counters)
    assert torch.equal(after.active, expected.active)
    going_on = begun & (after.counters[:, Counter.COUNT] == 2)
    assert torch.equal(going_on, begun)
    trace, wanted = (state.tables.trace[going_on] for state in (after, expected))
    torch.testing.assert_close(
        trace, wanted, rtol=RELATIVE[start.z.dtype], atol=0.0, equal_nan=True
    )
    for sample in going_on.nonzero().flatten():
        assert_close(after.z[sample], expected.z[sample], start.z.dtype)
    for name in ("z", "best_z", "record", "counters"):
        now, before = getattr(after, name), getattr(stopped, name)
        assert same_bits(now[~running], before[~running]), name
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
    names = ("z", "best_z", "record", "counters", "directions", "algebra")
    for name in (*names, "residual_changes", "image_changes", "last_residual"):
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
    new = expected.counters - start.counters
    scale = expected.tables.norms[:, Norm.SCALE]
    estimated = expected.tables.norms[:, Norm.GAMMA] != start.tables.norms[:, Norm.GAMMA]
    capacity = start.directions.shape[1]
    for sample in range(len(count)):
        stored = int(count[sample])
        frozen = start.counters[sample, Counter.STATUS] != Status.RUNNING
        shortened = new[sample, Counter.BACKTRACKS] > 0
        # A history that was full or given up starts again in row 0, or its rows move up by one.
        moved = stored == int(before[sample]) == capacity and not same_bits(
            expected.directions[sample, 0], start.directions[sample, 0].double()
        )
        restarted = stored == 1 and not frozen and bool(estimated[sample])
        extended = not frozen and stored > 0 and stored != int(before[sample])
        extended |= moved or restarted
        row = stored - 1
        others = [j for j in range(capacity) if not (extended and j == row)]
        kept = [j + 1 for j in others] if moved else others
        assert same_bits(after.directions[sample, others], start.directions[sample, kept])
        if shortened:
            step = after.algebra[sample, row, -2]
            assert_close(step, expected.algebra[sample, row, -2], accum)
            along = start.directions[sample, row].double() * (step - damping) / scale[sample]
            assert_close(after.z[sample], start.z[sample].double() + along, dtype)
            continue
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
            along = damping / scale[sample] * p
            assert_close(after.z[sample], start.z[sample].double() + along, dtype)
        else:
            assert same_bits(after.z[sample], start.z[sample])
        gram = slice(0, row)
        assert_close(after.algebra[sample, gram, gram], expected.algebra[sample, gram, gram], accum)
        steps, weights = -2, -1
        assert torch.equal(after.algebra[sample, : row + 1, steps], _row_of(damping, row + 1))
        assert_close(
            after.algebra[sample, gram, weights], expected.algebra[sample, gram, weights], accum
        )


def _check_window(
    after: StepState, start: StepState, *, damping: float, regularization: float
) -> None:
    """What an Anderson step stores, and the iterate it moves to: from what it stored itself."""
    was, now = start.window(), after.window()
    dtype, history_dtype = start.z.dtype, was.residual_changes.dtype
    both, accum = coarser(dtype, history_dtype), accumulate_dtype(dtype)
    capacity = was.residual_changes.shape[1]
    for sample in range(len(start.z)):
        seen, count = (int(state.counters[sample, Counter.COUNT]) for state in (start, after))
        if count != seen + 1:  # stopped, or sent back to its best iterate
            sent_back = after.counters[sample, Counter.STATUS] == Status.RUNNING and count == 0
            unmoved = start.best_z if sent_back else start.z
            assert same_bits(after.z[sample], unmoved[sample])
            assert same_bits(now.image_changes[sample], was.image_changes[sample])
            continue
        z = start.z[sample].double()
        r = start.f_z[sample].double() - z
        step = damping * r
        scale = after.tables.norms[sample, Norm.SCALE]
        if capacity == 0:
            assert_close(after.z[sample], z + step, dtype)
            continue
        assert_close(now.last_residual[sample], r, dtype)
        newest, following = (seen - 1) % capacity, seen % capacity
        written = {newest} if seen > 0 else set()
        others = [j for j in range(capacity) if j not in written]
        t, t_was = now.residual_changes[sample], was.residual_changes[sample]
        assert same_bits(t[others], t_was[others])
        others = [j for j in others if j != following]
        assert same_bits(now.image_changes[sample, others], was.image_changes[sample, others])
        correction = now.image_changes[sample, following].double()
        if seen == 0:
            assert torch.equal(correction, torch.zeros_like(correction))
            assert_close(after.z[sample], z + step, dtype)
            continue
        assert_close(t[newest], scale * (r - was.last_residual[sample].double()), both)
        # In order of time, with the newest change of the image as it was before rounding.
        slots = [(newest - age) % capacity for age in reversed(range(min(seen, capacity)))]
        changes = t[slots].double()
        images = was.image_changes[sample, slots].double()
        images[-1] += step
        if newest != following:
            assert_close(now.image_changes[sample, newest], images[-1], both)
        gram = changes @ changes.T
        assert_close(now.algebra[sample, newest, slots], gram[-1], accum)
        assert_close(now.algebra[sample, slots, newest], gram[-1], accum)
        scaled = scale * r
        gamma = _weights(changes, scaled, regularization * scaled.square().sum())
        assert_close(correction, -gamma @ images, both)
        # Along the correction as stored, so that its change matches the step.
        assert_close(after.z[sample], z + step + correction, dtype)


def _weights(changes: Tensor, residual: Tensor, ridge: Tensor) -> Tensor:
    """γ with (T Tᵀ + λ L) γ = T r + λ e_newest, for the rows t_j of T in order of time."""
    identity = torch.eye(len(changes), dtype=torch.float64)
    differences = torch.diff(identity, dim=0, prepend=0.0 * identity[:1], append=0.0 * identity[:1])
    right = changes @ residual + ridge * identity[-1]
    return torch.linalg.solve(changes @ changes.T + ridge * differences.T @ differences, right)


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


def check_low_rank_halves(
    engine: Engine,
    rows: Tensor,
    count: Tensor,
    x: Tensor,
    *,
    layout: Layout = as_it_is,
) -> tuple[Tensor, Tensor]:
    """Take the dots of rows with x, combine the rows with them, and project x.

    Returns:
        The dots and the combination, on the CPU.
    """
    own_rows, own_count, own_x = (t.to(engine.device) for t in (rows, count, x))
    own_rows = layout(own_rows)
    dots = low_rank.dots(own_rows, own_count, own_x)
    combined = low_rank.combine(own_rows, own_count, dots, own_x, scale=-0.6)
    wide = rows.double(), count
    expected = OPS["low_rank_dots"].reference(*wide, x.double())
    for now, wanted in zip(dots.cpu(), expected, strict=True):
        assert_close(now, wanted, torch.float64)
    expected = OPS["low_rank_combine"].reference(*wide, expected, x.double(), -0.6)
    assert combined.dtype == x.dtype
    for now, wanted in zip(combined.cpu(), expected, strict=True):
        assert_close(now, wanted, x.dtype)
    # Rows that are far from orthonormal would let rounding grow; these are short.
    short, rest, expected = 0.5 * own_rows, own_x.clone(), x.to(torch.float64, copy=True)
    projected = low_rank.project_out_(short, own_count, rest)
    wanted = OPS["low_rank_project_out_"].reference(short.cpu().double(), count, expected)
    for sample in range(len(count)):
        assert_close(projected[sample].cpu(), wanted[sample], torch.float64)
        assert_close(rest[sample].cpu(), expected[sample], x.dtype)
    return dots.cpu(), combined.cpu()


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


def check_cell(
    engine: Engine,
    start: CellState,
    *,
    activation: Activation = Activation.TANH,
    norm: NormKind = NormKind.TWO,
    damping: float = 0.9,
    fixed_steps: bool = False,
    accelerate: bool = False,
) -> CellState:
    """Solve a structured cell; returns what is left, on the CPU.

    Either steps of a fixed number, all held against those of the reference, or a solve to a
    tolerance, whose solution is.
    """
    options: dict[str, Any] = {"activation": activation, "damping": damping, "norm": norm}
    options |= {"rtol": 0.0, "atol": 1e-4, "stall_steps": 0, "divergence_factor": 1e6}
    options |= {"fixed_steps": fixed_steps, "accelerate": accelerate}
    after = copy_to(start, engine.device)
    after.iterate(**options)
    after = copy_to(after, CPU)
    names = ("weight", "values", "bias", "scale", "z")
    wide = {name: t.double() for name in names if (t := getattr(start, name)) is not None}
    expected = replace(copy_to(start, CPU), **wide)
    if not fixed_steps:
        options["atol"] = 1e-6
    with dk.use_backend("reference"):
        expected.iterate(**options)
    status, wanted = (state.counters[:, Counter.STATUS] for state in (after, expected))
    assert torch.equal(status, wanted)
    assert torch.equal(after.active, expected.active)
    frozen = start.counters[:, Counter.STATUS] != Status.RUNNING
    for name in ("z", "record", "counters"):
        assert same_bits(getattr(after, name)[frozen], getattr(start, name)[frozen])
    accum = accumulate_dtype(start.z.dtype)
    if fixed_steps:
        steps = (Counter.STATUS, Counter.STEPS)
        assert torch.equal(after.counters[:, steps], expected.counters[:, steps])
        torch.testing.assert_close(
            *(after.record, expected.record),
            rtol=RELATIVE[accum],
            atol=10 * RELATIVE[accum],
            equal_nan=True,
        )
        whole = (status != Status.DIVERGED) & ~frozen
        assert_close(after.z[whole], expected.z[whole], start.z.dtype)
    else:
        # A residual of 1e-4 leaves an error that is little larger where f contracts by 0.2.
        solved = status == Status.CONVERGED
        error = (after.z[solved].double() - expected.z[solved]).abs().max()
        assert error <= 2e-4 + RELATIVE[start.z.dtype] * expected.z[solved].abs().max()
        broken = status == Status.DIVERGED
        assert same_bits(after.z[broken], start.z[broken])
    return after


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
