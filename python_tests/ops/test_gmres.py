"""The op family `gmres` against dense Krylov minimisers in float64, on every backend present."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import OPS, gmres
from deq_kernels.ops.gmres.table import Number, Table, Vector, table_size
from deq_kernels.ops.termination import Counter, Norm, Tables
from python_tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ODD_DIMS = (1, 3, 15, 17, 4095, 4096, 4097, 9000)
OPTIONS = {"rtol": 0.0, "atol": 0.0, "stall_steps": 0, "divergence_factor": 1e6}


def state_of(
    batch: int, dim: int, columns: int, dtype: torch.dtype = torch.float64, max_steps: int = 12
) -> tuple[Tensor, Tensor, gmres.Cycles, Tables]:
    z = torch.randn(batch, dim, dtype=torch.float64).to(dtype)
    tables = Tables.new(batch, max_steps, z.device)
    return z, torch.empty_like(z), gmres.Cycles.new(z, columns), tables


def gains(dim: int) -> Tensor:
    return torch.linspace(-0.8, 0.7, dim, dtype=torch.float64)


def least_residual(gain: Tensor, start: Tensor, shift: Tensor, products: int) -> Tensor:
    """min ‖b − (I − A) w‖ of each sample over w₀ + K_products, with A = diag(gain); [batch]."""
    residual = gain * start + shift - start
    basis = torch.stack([(1 - gain) ** k * residual for k in range(products)], dim=2)
    image = (1 - gain)[:, :, None] * torch.linalg.qr(basis).Q
    span = torch.linalg.qr(image).Q
    rest = residual - (span @ (span.mT @ residual[:, :, None]))[:, :, 0]
    return rest.norm(dim=1)


@pytest.mark.interpreter(dim=(3, 4097), dtype=(torch.float32,))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", ODD_DIMS)
def test_a_cycle_ends_at_the_dense_minimiser(backend: str, dtype: torch.dtype, dim: int) -> None:
    columns = min(3, dim)
    z, best, cycles, tables = state_of(2, dim, columns, dtype)
    gain, shift = gains(dim), torch.ones(2, dim, dtype=torch.float64)
    start = z.double().clone()
    for _ in range(columns + 1):
        gmres.step_((gain * z.double() + shift).to(dtype), z, best, cycles, tables, **OPTIONS)
    assert tables.counters[:, Counter.COUNT].tolist() == [0, 0]
    size = (shift + gain * start - start).norm(dim=1)
    reached = (gain * z.double() + shift - z.double()).norm(dim=1) / size
    loose = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 5e-2)
    for number in range(1, columns + 1):
        expected = least_residual(gain.expand(2, -1), start, shift, number) / size
        predicted = tables.trace[:, number] / size
        torch.testing.assert_close(predicted, expected, rtol=0.0, atol=loose)
    torch.testing.assert_close(reached, expected, rtol=0.0, atol=2 * loose)
    basis = cycles.basis[:, :columns].double()
    eye = torch.eye(columns, dtype=torch.float64).expand(2, -1, -1)
    orthogonal = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(basis @ basis.mT, eye, rtol=0.0, atol=orthogonal)


@pytest.mark.interpreter(dtype=(torch.float64, torch.bfloat16))
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_agrees_with_the_reference(fused_backend: str, dtype: torch.dtype) -> None:
    ends = []
    for context in (nullcontext(), dk.use_backend("reference")):
        torch.manual_seed(3)
        z, best, cycles, tables = state_of(3, 300, 4, dtype)
        gain = gains(300)
        with context:
            for _ in range(8):
                f_z = (gain * z.double() + 1.0).to(dtype)
                gmres.step_(f_z, z, best, cycles, tables, **OPTIONS)
        ends.append((z, best, tables.trace[:, :8], tables.counters.double()))
    for fused, reference in zip(*ends, strict=True):
        assert_close(fused, reference, dtype)


def test_the_table_holds_the_least_squares_problem(backend: str) -> None:
    """R R⁻¹ = I with R from the rotated Hessenberg matrix, and y its solution."""
    dim, columns = 40, 5
    z, best, cycles, tables = state_of(2, dim, columns, max_steps=20)
    gain, shift = gains(dim), torch.ones(2, dim, dtype=torch.float64)
    start = z.clone()
    for _ in range(columns):  # f(w₀) and one product less than there is room for
        gmres.step_(gain * z + shift, z, best, cycles, tables, **OPTIONS)
    table = Table.of(cycles.algebra, columns)
    scale = table.numbers[:, Number.SCALE]
    assert (torch.frexp(scale).mantissa == 0.5).all()
    basis, known = cycles.basis[:, :columns], columns - 1
    image = (1 - gain) * basis[:, :known]
    triangle = torch.linalg.inv(table.inverse[:, :known, :known].triu())
    torch.testing.assert_close(triangle.mT @ triangle, image @ image.mT)
    residual = gain * start + shift - start
    y = torch.linalg.lstsq(image.mT, residual[:, :, None]).solution[:, :, 0]
    torch.testing.assert_close(table.vectors[:, Vector.SOLUTION, :known], y)
    along = (basis * start[:, None]).sum(2)
    torch.testing.assert_close(table.vectors[:, Vector.ALONG_START], along)


@pytest.mark.interpreter(size=(-999, 1000))
@pytest.mark.parametrize("size", [-999, -664, 532, 1000])
def test_states_of_any_size_take_the_same_steps(backend: str, size: int) -> None:
    """Squares of such numbers are no float64; all else is a power of two apart."""
    ends = []
    for unit in (1.0, 2.0**size):
        torch.manual_seed(2)
        z, best, cycles, tables = state_of(2, 300, 3)
        z *= unit
        for _ in range(9):  # two cycles, and what follows from the end of the second
            gmres.step_(gains(300) * z + unit, z, best, cycles, tables, **OPTIONS)
        norms = (tables.norms[:, Norm.BEST], tables.trace[:, :9])
        ends.append([*(t / unit for t in (z, best, *norms)), tables.counters])
    for sized, ordinary in zip(*ends, strict=True):
        torch.testing.assert_close(sized, ordinary, rtol=1e-9, atol=1e-13)


EDGES = [
    (torch.float16, 1.2e4),
    (torch.bfloat16, 5e37),
    (torch.float32, 5e37),
    (torch.float32, 1e-40),
    (torch.float64, 3e307),
    (torch.float64, 1e-305),
]


@pytest.mark.parametrize(("dtype", "size"), EDGES)
def test_states_at_the_edges_of_their_dtype(backend: str, dtype: torch.dtype, size: float) -> None:
    """The probe w₀ + t v and 1 / t stay numbers: −z / 2 + c is solved by one product."""
    z, best, cycles, tables = state_of(1, 3, 2, dtype)
    z.zero_()
    shift = torch.full_like(z, size)
    for _ in range(3):
        gmres.step_(shift - 0.5 * z, z, best, cycles, tables, **{**OPTIONS, "rtol": 1e-2})
    assert tables.counters[:, Counter.STATUS].tolist() == [dk.Status.CONVERGED]
    assert_close(best.double() / size, torch.full_like(best, 2 / 3, dtype=torch.float64), dtype)


def test_too_short_a_residual_is_no_direction(backend: str) -> None:
    """1 / ‖r‖ is no number: a step of the fixed-point iteration instead."""
    z, best, cycles, tables = state_of(1, 3, 2)
    z.fill_(2.0**-1060)
    gmres.step_(0.5 * z, z, best, cycles, tables, **OPTIONS)
    assert z.tolist() == [[2.0**-1061] * 3]
    assert tables.counters[:, : Counter.STEPS + 1].tolist() == [[dk.Status.RUNNING, 0, 1]]


def test_frozen_sample_is_neither_read_nor_written(backend: str) -> None:
    z, best, cycles, tables = state_of(2, 6, 3)
    best.normal_()
    stored = (cycles.basis, cycles.start, cycles.start_residual, cycles.algebra)
    for table in (*stored, tables.record):
        table.normal_()
    tables.counters[1, :5] = torch.tensor([dk.Status.CONVERGED, 2, 5, 0, 3])
    tables.active.fill_(1)
    state = (z, best, *stored, tables.record, tables.counters)
    kept = [t[1].clone() for t in state]
    for _ in range(4):
        f_z = 0.5 * z + torch.linspace(0, 1, 6, dtype=torch.float64) * z + 1.0
        f_z[1] = torch.nan
        gmres.step_(f_z, z, best, cycles, tables, **OPTIONS)
        for now, before in zip(state, kept, strict=True):
            assert torch.equal(now[1], before)
    assert tables.active.item() == 1


@pytest.mark.interpreter(run=False)
def test_a_step_after_all_samples_stopped_changes_nothing(backend: str) -> None:
    """As the loop on a GPU takes it, which learns of the end one step late."""
    z, best, cycles, tables = state_of(3, 20, 4)
    gain = torch.linspace(-0.5, 0.5, 20, dtype=torch.float64)
    options = {**OPTIONS, "rtol": 1e-3}
    for _ in range(12):
        gmres.step_(gain * z + 1.0, z, best, cycles, tables, **options)
        running = (tables.counters[:, Counter.STATUS] == dk.Status.RUNNING).sum()
        assert tables.active.item() == running
    assert running == 0
    stored = (cycles.basis, cycles.start, cycles.start_residual, cycles.algebra)
    tensors = (z, best, *stored, tables.record, tables.counters)
    kept = [tensor.clone() for tensor in tensors]
    gmres.step_(torch.full_like(z, torch.nan), z, best, cycles, tables, **options)
    assert tables.active.item() == 0
    for now, before in zip(tensors, kept, strict=True):
        torch.testing.assert_close(now, before, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.interpreter(run=False)
def test_strided_f_is_taken_as_it_is(backend: str) -> None:
    expected = None
    for layout in ("contiguous", "columns", "padded rows", "expanded"):
        torch.manual_seed(1)
        z, best, cycles, tables = state_of(3, 40, 3)
        for _ in range(3):
            row = torch.randn(1, 40, dtype=torch.float64)
            f_z = {
                "contiguous": row.repeat(3, 1),
                "columns": row.repeat(3, 1).T.contiguous().T,
                "padded rows": torch.cat((row.repeat(3, 1), torch.zeros(3, 5)), dim=1)[:, :40],
                "expanded": row.expand(3, 40),
            }[layout]
            gmres.step_(f_z, z, best, cycles, tables, **OPTIONS)
        expected = z if expected is None else expected
        assert torch.equal(z, expected)


@pytest.mark.parametrize(("batch", "dim"), [(0, 4), (3, 0), (0, 0)])
def test_empty_sizes(backend: str, batch: int, dim: int) -> None:
    z, best, cycles, tables = state_of(batch, dim, 3)
    gmres.step_(z.clone(), z, best, cycles, tables, **OPTIONS)
    assert tables.active.item() == 0
    assert (tables.counters[:, Counter.STATUS] == dk.Status.CONVERGED).all()


def test_native_rejects_wrong_arguments_by_name() -> None:
    z, best, cycles, tables = state_of(2, 6, 3)

    def step(**changed: Tensor) -> None:
        parts = {name: changed.get(name, getattr(cycles, name)) for name in cycles.__slots__}
        gmres.step_(z.clone(), z, best, gmres.Cycles(**parts), tables, **OPTIONS)

    basis = cycles.basis
    for name, wrong, message in (
        ("basis", basis[0], "basis must be"),
        ("basis", basis[:, :1], "basis must be"),
        ("basis", basis.mT.contiguous().mT, "must be dense in its last dimension"),
        ("basis", basis.float(), "basis must have dtype"),
        ("start", cycles.start.float(), "start must have dtype"),
        ("start_residual", cycles.start_residual[:1], "start_residual must have size 2"),
        ("algebra", cycles.algebra[:, :9], f"size {table_size(3)} in dimension 1, got 9"),
        ("scratch", cycles.scratch[:, :1], "scratch must have size 2 in dimension 1, got 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            step(**{name: wrong})
    for count, message in ((-1, "got -1 in column 1 of sample 1"), (4, "a sample has 4 vectors")):
        tables.counters[1, Counter.COUNT] = count
        with pytest.raises(RuntimeError, match=message):
            step()


def test_options_are_all_asked_for_and_no_others() -> None:
    z, best, cycles, tables = state_of(1, 3, 2)
    with pytest.raises(TypeError, match="damping"):
        gmres.step_(z, z, best, cycles, tables, **OPTIONS, damping=1.0)
    with pytest.raises(TypeError, match="atol"):
        gmres.step_(z, z, best, cycles, tables, rtol=0.0)


@pytest.mark.parametrize("dim", [7, 4096, 9001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_threads_and_neighbours_change_no_bit(
    set_threads: Callable[[int], None], dtype: torch.dtype, dim: int
) -> None:
    """Alone, among others, next to a solved sample and next to one that is NaN."""
    gain = torch.linspace(-0.9, 0.95, dim).to(dtype)
    solver = dk.GMRES(max_steps=11, rtol=1e-5, restart=4)

    def solve(z0: Tensor) -> list[Tensor]:
        solution = solver(lambda z: gain * z + 1.0, z0)
        return [solution.z, solution.trace.nan_to_num(-1.0), solution.steps, solution.status]

    z0 = torch.randn(5, dim).to(dtype)
    z0[1] = torch.nan
    z0[3] = (1.0 / (1.0 - gain.double())).to(dtype)
    set_threads(1)
    together = solve(z0)
    for threads in (2, 3, 5):
        set_threads(threads)
        for now, before in zip(solve(z0), together, strict=True):
            assert torch.equal(now.nan_to_num(-1.0), before.nan_to_num(-1.0))
    for sample in (0, 2, 4):
        for one, many in zip(solve(z0[sample : sample + 1]), together, strict=True):
            assert torch.equal(one[0], many[sample])


def test_opcheck() -> None:
    z, best, cycles, tables = state_of(2, 7, 3)
    stored = (cycles.basis, cycles.start, cycles.start_residual, cycles.algebra)
    for tensor in (best, *stored, cycles.scratch):
        tensor.zero_()
    tables.active.zero_()
    record = (tables.record, tables.counters, tables.active, cycles.scratch)
    arguments = (torch.randn_like(z), z, best, *stored, *record, 1e-3, 0.0, 0, 1e6)
    torch.library.opcheck(OPS["gmres_step_"].overload, arguments)
