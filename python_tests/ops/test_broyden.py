"""The op family `broyden` against dense float64 algebra, on every backend present."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import OPS, broyden
from deq_kernels.ops.broyden.reference import split_algebra
from deq_kernels.ops.termination import Counter, Norm, Tables
from python_tests.problems import DenseBroyden, Tanh, chained_product, dense_product_form
from python_tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ODD_DIMS = (1, 3, 15, 17, 4095, 4096, 4097, 9000)


def random_history(
    batch: int, capacity: int, dim: int, dtype: torch.dtype, damping: float = 0.7
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions and table, every sample of another rank, NaN where a solve writes nothing."""
    directions = torch.randn(batch, capacity, dim).to(dtype)
    rank = torch.arange(batch) % capacity
    used = torch.arange(capacity) <= rank[:, None]
    directions[~used] = torch.nan
    full = torch.where(used[:, :, None], directions.double(), 0.0)
    gram = full @ full.mT
    weight = torch.where(used, 1.0 / gram.diagonal(dim1=1, dim2=2), 0.0)
    factors = torch.stack((torch.full_like(weight, damping), weight), dim=-1)
    finished = torch.arange(capacity) < rank[:, None]
    gram[~(finished[:, :, None] & finished[:, None, :])] = torch.nan
    factors[~finished] = torch.nan
    return directions, torch.cat((gram, factors), dim=-1), rank


@pytest.mark.interpreter(dtype=(torch.float64, torch.bfloat16), dim=(17, 4097))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", ODD_DIMS)
def test_products_equal_dense_factors(backend: str, dtype: torch.dtype, dim: int) -> None:
    directions, algebra, rank = random_history(5, 4, dim, dtype)
    x = torch.randn(5, 2, dim).to(dtype)
    for transpose in (False, True):
        product = broyden.matvec(directions, algebra, rank, x, scale=-0.5, transpose=transpose)
        for sample in range(5):
            used = directions[sample, : int(rank[sample]) + 1]
            steps = algebra[sample, :, -2]
            for column in range(2):
                right = x[sample, column]
                expected = chained_product(used, steps, 0.5, right, transpose=transpose)
                assert_close(product[sample, column], expected, dtype)


def test_the_chain_is_the_dense_product() -> None:
    """The test's own formula for large dimensions equals explicit matrices."""
    directions, steps = torch.randn(4, 9).double(), torch.rand(4).double()
    dense = dense_product_form(directions, steps, 0.5)
    x = torch.randn(9).double()
    for transpose, expected in ((False, dense @ x), (True, dense.T @ x)):
        chained = chained_product(directions, steps, 0.5, x, transpose=transpose)
        torch.testing.assert_close(chained, expected)


@pytest.mark.interpreter(dtype=(torch.float16,))
@pytest.mark.parametrize(
    ("dtype", "history_dtype"),
    [
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_products_with_another_history_dtype(
    backend: str, dtype: torch.dtype, history_dtype: torch.dtype
) -> None:
    directions, algebra, rank = random_history(4, 4, 77, history_dtype)
    x = torch.randn(4, 1, 77).to(dtype)
    product = broyden.matvec(directions, algebra, rank, x)
    for sample in range(4):
        dense = dense_product_form(
            directions[sample, : int(rank[sample]) + 1], algebra[sample, :, -2], 1.0
        )
        assert_close(product[sample], (dense @ x[sample].double().T).T, dtype)


def test_seeded_product_replaces_the_initial_inverse(backend: str) -> None:
    directions, algebra, rank = random_history(3, 4, 9, torch.float64)
    seed = torch.randn(9, 9, dtype=torch.float64)
    inverse = dk.ProductFormInverse(directions, algebra, rank + 1, 1.0, torch.float64)
    x = torch.randn(3, 9, dtype=torch.float64)
    for sample in range(3):
        r = int(rank[sample])
        factor = dense_product_form(directions[sample, : r + 1], algebra[sample, :, -2], -1.0)
        expected = factor @ seed @ x[sample]
        seeded = inverse.matvec(x @ seed.T, seeded=True)[sample]
        torch.testing.assert_close(seeded, expected, rtol=1e-12, atol=1e-12)
        expected = (factor @ seed).T @ x[sample]
        seeded = (inverse.rmatvec(x, seeded=True) @ seed)[sample]
        torch.testing.assert_close(seeded, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.interpreter(dim=(31,), norm=(1.4,), damping=(0.7,))
@pytest.mark.parametrize(
    ("dim", "norm", "damping"),
    [(5, 0.9, 1.0), (5, 1.4, 0.7), (31, 0.9, 0.7), (31, 1.4, 1.0), (31, 1.4, 0.7), (2060, 0.9, 1)],
)
def test_trajectory_equals_dense_broyden(
    backend: str, dim: int, norm: float, damping: float
) -> None:
    steps = 5
    problem = Tanh.random(2, dim, norm)
    z0 = torch.randn(2, dim, dtype=torch.float64)
    solution = dk.Broyden(max_steps=steps + 1, rtol=0.0, damping=damping, gamma=0.8)(problem, z0)
    assert solution.inverse_jacobian is not None
    x = torch.randn(2, dim, dtype=torch.float64)
    for sample in range(2):
        oracle = DenseBroyden.run(
            problem.sample(sample), z0[sample], steps, damping=damping, gamma=0.8
        )
        residuals = torch.stack([r.norm() for r in oracle.residuals])
        torch.testing.assert_close(solution.trace[sample], residuals, rtol=1e-7, atol=1e-12)
        best = int(residuals.argmin())
        torch.testing.assert_close(solution.z[sample], oracle.iterates[best], rtol=1e-8, atol=1e-10)
        for product, dense in (
            (solution.inverse_jacobian.matvec(x), oracle.inverse),
            (solution.inverse_jacobian.rmatvec(x), oracle.inverse.T),
        ):
            torch.testing.assert_close(product[sample], dense @ x[sample], rtol=1e-8, atol=1e-8)


@pytest.mark.interpreter(dtype=(torch.float32, torch.float16))
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_agrees_with_the_reference(fused_backend: str, dtype: torch.dtype) -> None:
    """The same few steps on both backends, from the same f, to the accuracy of the dtype."""
    problem = Tanh.random(4, 300, 0.8)
    weight, bias = problem.weight.to(dtype), problem.bias.to(dtype)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight.T + bias)

    z0 = torch.zeros(4, 300, dtype=dtype)
    solver = dk.Broyden(max_steps=4, rtol=0.0)
    fused = solver(f, z0)
    with dk.use_backend("reference"):
        reference = solver(f, z0)
    assert_close(fused.trace, reference.trace, dtype)
    assert_close(fused.z, reference.z, dtype)
    assert torch.equal(fused.status, reference.status)


def _tensors(holder: broyden.History | Tables) -> tuple[Tensor, ...]:
    return tuple(getattr(holder, field.name) for field in fields(holder))


@pytest.mark.interpreter(dtype=(torch.float32,), dim=(40,))
@pytest.mark.parametrize("size", [1.0, 2.0**-90, 2.0**90])
@pytest.mark.parametrize("dim", [40, 9000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_with_options_agree_with_the_reference(
    fused_backend: str, dtype: torch.dtype, dim: int, size: float
) -> None:
    """From the same state on both backends, step by step; every option has its occasion."""
    z = (size * (1.0 + 0.3 * torch.randn(3, dim))).to(dtype)
    best, history, tables = z.clone(), broyden.History.new(z, 2, None), Tables.new(3, 14, z.device)
    variants = {"drop_oldest": True, "estimate_gamma": True, "max_backtracks": 2}
    seen = {Counter.BACKTRACKS: 0, Counter.ESTIMATES: 0, Counter.COUNT: 0}
    slope = torch.linspace(-4.0, 0.5, dim).to(dtype)
    for _ in range(12):
        f_z = size * (1 + slope * torch.sin(z / size) ** 3)
        tensors = (z, best, *_tensors(history), *_tensors(tables))
        own_z, own_best, *rest = (tensor.clone() for tensor in tensors)
        own_history, own_tables = broyden.History(*rest[:3]), Tables(*rest[3:])
        broyden.step_(f_z, z, best, history, tables, **OPTIONS, **variants)
        with dk.use_backend("reference"):
            broyden.step_(f_z, own_z, own_best, own_history, own_tables, **OPTIONS, **variants)
        assert torch.equal(tables.counters, own_tables.counters)
        assert_close(z, own_z, dtype)
        assert torch.equal(best, own_best)
        for sample in range(3):
            norms = tables.norms[sample], own_tables.norms[sample]
            torch.testing.assert_close(*norms, rtol=1e-4, atol=0.0)
            stored = int(tables.counters[sample, Counter.COUNT])
            rows, finished = slice(0, stored), slice(0, max(0, stored - 1))
            directions = (h.directions[sample, rows] for h in (history, own_history))
            assert_close(*directions, dtype)
            mine, expected = history.algebra[sample], own_history.algebra[sample]
            assert_close(mine[finished, finished], expected[finished, finished], dtype)
            assert_close(mine[finished, -1], expected[finished, -1], dtype)
            assert_close(mine[rows, -2], expected[rows, -2], dtype)
        for column in seen:
            seen[column] = max(seen[column], int(tables.counters[:, column].max()))
    assert seen[Counter.BACKTRACKS] > 0
    assert seen[Counter.ESTIMATES] == 1
    assert seen[Counter.COUNT] == 3
    assert ((tables.norms[:, Norm.SCALE] == 1.0) == (size == 1.0)).all()


def state_of(batch: int, dim: int, history_length: int) -> tuple[Tensor, broyden.History, Tables]:
    z = torch.randn(batch, dim, dtype=torch.float64)
    history = broyden.History.new(z, history_length, None)
    return z, history, Tables.new(batch, 10, z.device)


OPTIONS = {
    "rtol": 0.0,
    "atol": 0.0,
    "damping": 1.0,
    "gamma": 1.0,
    "stall_steps": 0,
    "divergence_factor": 1e6,
    "finish_inverse": True,
}


def test_guard_skips_a_singular_factor(backend: str) -> None:
    """f(z1) chosen so that r1 − r0 has H y = 0: the factor is skipped and p = −w = γ r."""
    z, history, tables = state_of(1, 4, 3)
    best = torch.empty_like(z)
    r0 = torch.randn(1, 4, dtype=torch.float64)
    broyden.step_(z + r0, z, best, history, tables, **OPTIONS)
    # With H₀ = −I: π = −⟨p, r1⟩, N = ‖p‖², and r1 = r0 = p makes π + N = 0.
    before = z.clone()
    broyden.step_(z + r0, z, best, history, tables, **OPTIONS)
    torch.testing.assert_close(z, before + r0, rtol=1e-14, atol=1e-14)
    assert history.algebra[0, 0, -1] == 0.0


def test_frozen_sample_is_neither_read_nor_written(backend: str) -> None:
    z, history, tables = state_of(2, 6, 3)
    best = torch.randn_like(z)
    for table in (history.directions, history.algebra, tables.record):
        table.normal_()
    tables.counters[1] = torch.tensor([dk.Status.CONVERGED, 2, 5, 0, 3, 1, 1])
    tables.active.fill_(1)
    state = (z, best, history.directions, history.algebra, tables.record, tables.counters)
    kept = [t[1].clone() for t in state]
    f_z = z + 1.0
    f_z[1] = torch.nan
    broyden.step_(f_z, z, best, history, tables, **OPTIONS)
    for now, before in zip(state, kept, strict=True):
        assert torch.equal(now[1], before)
    assert tables.active.item() == 1


def test_a_step_after_all_samples_stopped_changes_nothing(backend: str) -> None:
    """As the loop on a GPU takes it, which learns of the end one step late."""
    z, history, tables = state_of(3, 20, 4)
    best = torch.empty_like(z)
    options = {**OPTIONS, "rtol": 1e-3}
    gain = torch.linspace(-0.5, 0.5, 20, dtype=torch.float64)
    for _ in range(10):
        broyden.step_(gain * z + 1.0, z, best, history, tables, **options)
        running = (tables.counters[:, Counter.STATUS] == dk.Status.RUNNING).sum()
        assert tables.active.item() == running
        if running == 0:
            break
    assert running == 0
    tensors = (z, best, history.directions, history.algebra, tables.record, tables.counters)
    kept = [tensor.clone() for tensor in tensors]
    broyden.step_(torch.full_like(z, torch.nan), z, best, history, tables, **options)
    assert tables.active.item() == 0
    for now, before in zip(tensors, kept, strict=True):
        torch.testing.assert_close(now, before, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.interpreter(dtype=(torch.float32,))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_of_the_history_may_lie_apart(backend: str, dtype: torch.dtype) -> None:
    """As a GPU's do, and at any distance: the same bits as without gaps."""
    z0 = torch.randn(2, 37).to(dtype)
    gain = torch.linspace(-0.9, 0.9, 37).to(dtype)
    results = []
    for gaps in (False, True):
        z, best = z0.clone(), torch.empty_like(z0)
        tables = Tables.new(2, 5, z.device)
        history = broyden.History.new(z, 4, None)
        if gaps:
            directions = torch.full((2, 7, 59), torch.nan, dtype=dtype)[:, 1:6, 3:40]
            history = replace(history, directions=directions)
        for _ in range(4):
            broyden.step_(gain * z + 1.0, z, best, history, tables, **OPTIONS)
        rank = tables.counters[:, Counter.COUNT] - 1
        products = [
            broyden.matvec(history.directions, history.algebra, rank, z[:, None], transpose=t)
            for t in (False, True)
        ]
        gram = split_algebra(history.algebra)[0][:, :3, :3]
        results.append((z, best, tables.trace, gram, history.directions[:, :4], *products))
    for apart, dense in zip(*results, strict=True):
        torch.testing.assert_close(apart, dense, rtol=0.0, atol=0.0, equal_nan=True)


def test_strided_f_is_taken_as_it_is(backend: str) -> None:
    expected = None
    for layout in ("contiguous", "columns", "padded rows", "expanded"):
        torch.manual_seed(1)
        z, history, tables = state_of(3, 40, 2)
        best = torch.empty_like(z)
        row = torch.randn(1, 40, dtype=torch.float64)
        f_z = {
            "contiguous": row.repeat(3, 1),
            "columns": row.repeat(3, 1).T.contiguous().T,
            "padded rows": torch.cat((row.repeat(3, 1), torch.zeros(3, 5)), dim=1)[:, :40],
            "expanded": row.expand(3, 40),
        }[layout]
        broyden.step_(f_z, z, best, history, tables, **OPTIONS)
        expected = z if expected is None else expected
        assert torch.equal(z, expected)


@pytest.mark.parametrize(("batch", "dim"), [(0, 4), (3, 0), (0, 0)])
def test_empty_sizes(backend: str, batch: int, dim: int) -> None:
    z = torch.zeros(batch, dim)
    history = broyden.History.new(z, 2, None)
    rank = torch.zeros(batch, dtype=torch.int64)
    x = torch.randn(batch, 2, dim)
    product = broyden.matvec(history.directions, history.algebra, rank, x)
    assert product.shape == x.shape
    tables = Tables.new(batch, 10, z.device)
    broyden.step_(z.clone(), z, z.clone(), history, tables, **OPTIONS)
    assert tables.active.item() == 0


def test_compiled_kernels_reject_wrong_arguments_by_name(compiled_backend: str) -> None:
    z, history, tables = state_of(2, 6, 3)
    with pytest.raises(RuntimeError, match="f_z must have size 6 in dimension 1, got 5"):
        broyden.step_(z[:, :5].clone(), z, z.clone(), history, tables, **OPTIONS)
    with pytest.raises(RuntimeError, match="best_z must have dtype"):
        broyden.step_(z.clone(), z, z.float(), history, tables, **OPTIONS)


@pytest.mark.interpreter(run=False)
@pytest.mark.parametrize("transpose", [False, True])
def test_matvec_gradient(backend: str, transpose: bool) -> None:
    history = random_history(3, 4, 6, torch.float64)
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: broyden.matvec(*history, v, transpose=transpose), x, check_undefined_grad=False
    )


def test_matvec_refuses_a_history_that_requires_grad(fused_backend: str) -> None:
    directions, *tables = random_history(3, 4, 6, torch.float64)
    directions.requires_grad_()
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(NotImplementedError, match="differentiable in x only"):
        broyden.matvec(directions, *tables, x)


def test_opcheck(fused_backend: str) -> None:
    z, history, tables = state_of(2, 7, 3)
    best = z.clone()
    f_z = torch.randn_like(z)
    state = (f_z, z, best, history.directions.zero_(), history.algebra.zero_())
    record = (tables.record, tables.counters, tables.active, history.scratch.zero_())
    options = (1e-3, 0.0, 1.0, 1.0, 0, 1e6, True, True, True, 2)
    torch.library.opcheck(OPS["broyden_step_"].overload, (*state, *record, *options))
    directions, algebra, rank = random_history(3, 4, 6, torch.float64)
    directions = directions.nan_to_num(0.0)
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(
        OPS["broyden_matvec"].overload, (directions, algebra, rank, x, -1.0, False)
    )
