"""More than 2³¹ elements, which 32-bit offsets cannot reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deq_kernels.ops import anderson, broyden
from deq_kernels.ops.termination import Counter, Norm, Tables
from python_tests.gpu.engines import CPU, Engine
from python_tests.tolerances import assert_close

LARGE_DIM = 52_000_003
# Offsets pass 2³¹ from one sample to the next, or within one.
SHAPES = ((2, 22), (1, 43))
NEEDED_BYTES = 16 * 2**30


def dot(x: Tensor, y: Tensor) -> float:
    """⟨x, y⟩ in float64, without a product of matrices."""
    return float((x.double() * y.double()).sum())


def random_history(
    z: Tensor, capacity: int, count: int, dtype: torch.dtype
) -> tuple[broyden.History, Tensor]:
    """A history of `count` directions of unit steps, all factors finished but the newest."""
    batch, dim = z.shape
    history = broyden.History.new(z, capacity - 1, dtype)
    table = history.algebra.zero_()
    for sample in range(batch):
        rows = history.directions[sample]
        for j in range(count):
            rows[j] = torch.randn(dim, device=z.device).to(dtype)
            for i in range(j + 1):
                table[sample, i, j] = table[sample, j, i] = dot(rows[i], rows[j])
        table[sample, :count, -2] = 1.0
        table[sample, :count, -1] = 1.0 / table[sample, :count, :count].diagonal()
    counts = torch.full((batch,), count, dtype=torch.int64, device=z.device)
    return history, counts


def product(history: broyden.History, sample: int, rank: int, x: Tensor) -> Tensor:
    """H x factor after factor in float64, with one direction at a time in memory."""
    rows = history.directions[sample]
    y = -x.double()
    for j in range(rank):
        p = rows[j].double()
        y += rows[j + 1].double() * (dot(p, y) / dot(p, p))
    return y


def check_broyden(device: torch.device, batch: int, capacity: int, dim: int) -> None:
    """A product and a step with a bfloat16 history that is full but for one direction."""
    count = capacity - 1
    z, f_z = (torch.randn(batch, dim, device=device) for _ in range(2))
    history, counts = random_history(z, capacity, count, torch.bfloat16)

    x = torch.randn(batch, 1, dim, device=device)
    got = broyden.matvec(history.directions, history.algebra, counts - 1, x)
    for sample in range(batch):
        expected = product(history, sample, count - 1, x[sample, 0])
        assert_close(got[sample, 0], expected, torch.float32)
    del x, got

    tables = Tables.new(batch, capacity + 2, device)
    tables.counters[:, Counter.COUNT] = count
    tables.counters[:, Counter.STEPS] = count
    tables.norms.fill_(1e9)
    tables.norms[:, [Norm.GAMMA, Norm.SCALE]] = 1.0
    before, best_z = z.clone(), torch.empty_like(z)
    options = {"rtol": 0.0, "atol": 0.0, "damping": 1.0, "gamma": 1.0, "stall_steps": 0}
    broyden.step_(
        *(f_z, z, best_z, history, tables),
        **options,
        divergence_factor=1e6,
        finish_inverse=True,
    )
    assert torch.equal(best_z, before)
    for sample in range(batch):
        w = product(history, sample, count - 1, f_z[sample].double() - before[sample].double())
        newest = history.directions[sample, count - 1].double()
        norm_sq = dot(newest, newest)
        direction = -norm_sq / (dot(newest, w) + norm_sq) * w
        stored = history.directions[sample, count]
        assert_close(stored, direction, torch.bfloat16)
        moved = before[sample].double() + stored.double()
        assert_close(z[sample], moved, torch.float32)


def check_anderson(device: torch.device, batch: int, capacity: int, dim: int) -> None:
    """A step whose newest changes lie in the last slot, with weights for the newest alone."""
    z, f_z = (torch.randn(batch, dim, device=device) for _ in range(2))
    window = anderson.Window.new(z, capacity + 1, torch.bfloat16)
    window.residual_changes.zero_()
    window.image_changes.zero_()
    window.algebra.zero_()
    window.last_residual.normal_()
    corrections = torch.randn(batch, dim, device=device).to(torch.bfloat16)
    window.image_changes[:, -1] = corrections
    tables = Tables.new(batch, capacity + 2, device)
    tables.counters[:, Counter.COUNT] = capacity
    tables.counters[:, Counter.STEPS] = capacity
    tables.record.fill_(1e9)
    tables.norms[:, Norm.SCALE] = 1.0
    before, best_z = z.clone(), torch.empty_like(z)
    last_residual = window.last_residual.clone()
    options = {"rtol": 0.0, "atol": 0.0, "damping": 1.0, "stall_steps": 0}
    anderson.step_(
        *(f_z, z, best_z, window, tables), **options, regularization=0.0, divergence_factor=1e6
    )
    for sample in range(batch):
        r = f_z[sample].double() - before[sample].double()
        newest = window.residual_changes[sample, -1].double()
        assert_close(newest, r - last_residual[sample].double(), torch.bfloat16)
        image = window.image_changes[sample, -1].double()
        assert_close(image, corrections[sample].double() + r, torch.bfloat16)
        correction = -dot(newest, r) / dot(newest, newest) * image
        assert_close(window.image_changes[sample, 0], correction, torch.bfloat16)
        moved = f_z[sample].double() + window.image_changes[sample, 0].double()
        assert_close(z[sample], moved, torch.float32)


CHECKS = {"broyden": check_broyden, "anderson": check_anderson}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("batch", "capacity"), SHAPES)
def test_the_check_itself_on_few_elements(
    engine: Engine, batch: int, capacity: int, name: str
) -> None:
    CHECKS[name](engine.device, batch, capacity, 5003)


# No regime but the grid is possible here, so none is forced.
@pytest.mark.parametrize("gpu_engine", ["cuda", "triton"], indirect=True)
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("batch", "capacity"), SHAPES)
def test_more_elements_than_32_bits_count(
    gpu_engine: Engine, batch: int, capacity: int, name: str
) -> None:
    assert batch * capacity * LARGE_DIM > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES >> 30} GiB of free device memory")
    CHECKS[name](gpu_engine.device, batch, capacity, LARGE_DIM)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("dim", [0, 1])
def test_no_elements_at_all(engine: Engine, batch: int, dim: int) -> None:
    z = torch.ones(batch, dim, device=engine.device)
    history = broyden.History.new(z, 2, None)
    rank = torch.zeros(batch, dtype=torch.int64, device=engine.device)
    x = torch.ones(batch, 2, dim, device=engine.device)
    assert torch.equal(broyden.matvec(history.directions, history.algebra, rank, x), -x)
    tables = Tables.new(batch, 4, engine.device)
    options = {"rtol": 0.0, "atol": 0.0, "damping": 1.0, "gamma": 1.0, "stall_steps": 0}
    broyden.step_(
        *(z + 1.0, z, z.clone(), replace(history), tables),
        **options,
        divergence_factor=1e6,
        finish_inverse=True,
    )
    # Without elements there is no residual: such samples have converged.
    assert tables.active.item() == (batch if dim else 0)
    assert torch.equal(z.to(CPU), torch.full((batch, dim), 2.0))
