"""The op family `damped` against its formulas in float64, on every backend present."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import OPS, Status, damped
from deq_kernels.ops.termination import Counter, Norm, Tables
from python_tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OPTIONS = {"rtol": 0.0, "atol": 0.0, "stall_steps": 0, "divergence_factor": 1e6}


@pytest.mark.interpreter(dtype=(torch.float32, torch.bfloat16), dim=(7, 6000), damping=(0.3,))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 64, 2049, 6000])
@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_step(backend: str, dtype: torch.dtype, dim: int, damping: float) -> None:
    z, f_z = (torch.randn(3, dim).to(dtype) for _ in range(2))
    before, best = z.clone(), torch.empty_like(z)
    tables = Tables.new(3, 5, z.device)
    damped.step_(f_z, z, best, tables, damped.new_scratch(z), damping=damping, **OPTIONS)
    expected = before.double() + damping * (f_z.double() - before.double())
    assert_close(z, expected, dtype)
    residual = (f_z.double() - before.double()).norm(dim=1)
    assert_close(tables.trace[:, 0], residual, dtype)
    assert torch.equal(tables.trace[:, 0], tables.norms[:, Norm.BEST])
    assert torch.equal(best, before)
    assert tables.active.item() == 3


def test_step_judges_each_sample(backend: str) -> None:
    """One converges, one goes on, one is frozen, one is not finite."""
    z = torch.ones(4, 5)
    f_z = torch.ones(4, 5)
    f_z[1] = 2.0
    f_z[3, 2] = torch.inf
    best = torch.full_like(z, 9.0)
    tables = Tables.new(4, 5, z.device)
    tables.counters[2, Counter.STATUS] = dk.Status.STALLED
    tables.active.fill_(3)
    damped.step_(f_z, z, best, tables, damped.new_scratch(z), damping=0.5, **OPTIONS)
    status = tables.counters[:, Counter.STATUS].tolist()
    assert status == [dk.Status.CONVERGED, dk.Status.RUNNING, dk.Status.STALLED, dk.Status.DIVERGED]
    assert z[:, 0].tolist() == [1.0, 1.5, 1.0, 1.0]
    assert best[:, 0].tolist() == [1.0, 1.0, 9.0, 1.0]
    assert tables.counters[:, Counter.STEPS].tolist() == [1, 1, 0, 1]
    assert tables.active.item() == 1
    damped.step_(z.clone(), z, best, tables, damped.new_scratch(z), damping=0.5, **OPTIONS)
    assert tables.counters[:, Counter.STEPS].tolist() == [1, 2, 0, 1]
    assert tables.active.item() == 0


def test_a_negative_tolerance_is_met_by_no_residual(backend: str) -> None:
    """And where the first residual is 0, none has grown too far for an infinite factor."""
    z, tables = torch.zeros(2, 5), Tables.new(2, 3, torch.get_default_device())
    options = {**OPTIONS, "atol": -1.0, "divergence_factor": torch.inf}
    for value in (0.0, 2.0):
        f_z = torch.full_like(z, value)
        damped.step_(f_z, z, z.clone(), tables, damped.new_scratch(z), damping=1.0, **options)
        assert tables.counters[:, Counter.STATUS].tolist() == [dk.Status.RUNNING] * 2
        assert tables.active.item() == 2
    assert z.tolist() == [[2.0] * 5] * 2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_overflow_nor_vanish(backend: str, scale: float) -> None:
    z, f_z = torch.zeros(1, 100), torch.full((1, 100), scale)
    tables = Tables.new(1, 5, z.device)
    damped.step_(f_z, z, z.clone(), tables, damped.new_scratch(z), damping=1.0, **OPTIONS)
    torch.testing.assert_close(tables.trace[0, 0].item(), 10 * scale, rtol=1e-6, atol=0.0)
    assert tables.active.item() == 1


@pytest.mark.parametrize("size", [2.0**-1000, 2.0**-660, 2.0**900])
def test_norms_of_float64_states_are_right_at_any_size(backend: str, size: float) -> None:
    """Their squares are no numbers; the last sample's residual alone is out of range, or zero."""
    z, f_z = (torch.zeros(4, 5000, dtype=torch.float64) for _ in "ab")
    z[:2], f_z[:2] = size, 3.0 * size
    f_z[1, 4900] = torch.inf
    f_z[2:] = 1.0
    z[2:] = 1.0
    z[3, :100], f_z[3, :100] = 0.0, size
    tables = Tables.new(4, 5, z.device)
    damped.step_(f_z, z, z.clone(), tables, damped.new_scratch(z), damping=1.0, **OPTIONS)
    status = [dk.Status(s) for s in tables.counters[:, Counter.STATUS].tolist()]
    running, diverged, converged = Status.RUNNING, Status.DIVERGED, Status.CONVERGED
    assert status == [running, diverged, converged, running]
    residual = tables.trace[:, 0] / size
    torch.testing.assert_close(residual[0].item(), 2.0 * 5000**0.5, rtol=1e-12, atol=0.0)
    assert residual[2] == 0.0
    torch.testing.assert_close(residual[3].item(), 10.0, rtol=1e-12, atol=0.0)
    assert tables.active.item() == 2


def test_the_mark_follows_the_growth_of_the_image(backend: str) -> None:
    """Convergence by rtol needs half of the residual marked, once ‖f(z)‖ has doubled."""
    options = {**OPTIONS, "rtol": 0.5}
    z = torch.zeros(4, 1)
    tables = Tables.new(4, 8, z.device)
    residual = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    image = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    seen = []
    # Stays; halves where the image leaps; rises and halves; halves after the image has stopped.
    for residuals, images in (
        ((1.0, 0.5, 4.0, 1.0), (3.0, 3.0, 3.0, 3.0)),
        ((1.0, 0.0, 2.5, 0.9), (5.0, 0.0, 5.0, 5.0)),
        ((1.0, 0.0, 2.0, 0.5), (7.0, 0.0, 5.0, 5.0)),
    ):
        if not seen:
            z.copy_(image - residual)
            step(image, z, tables, options)
        image = torch.tensor(images)[:, None]
        z.copy_(image - torch.tensor(residuals)[:, None])
        step(image, z, tables, options)
        seen.append(tables.counters[:, Counter.STATUS].tolist())
    running, converged = Status.RUNNING, Status.CONVERGED
    assert seen[0] == [running, converged, running, running]
    assert seen[1] == [running, converged, running, running]
    assert seen[2] == [running, converged, converged, converged]
    assert tables.norms[0, Norm.MARKED_IMAGE] == 7.0
    assert tables.norms[0, Norm.MARKED_RESIDUAL] == 1.0


def step(f_z: Tensor, z: Tensor, tables: Tables, options: dict[str, float]) -> None:
    damped.step_(f_z, z, z.clone(), tables, damped.new_scratch(z), damping=1.0, **options)


@pytest.mark.interpreter(dtype=(torch.float32,), dim=(7, 6000))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 2049, 6000])
def test_neumann_step(backend: str, dtype: torch.dtype, dim: int) -> None:
    vjp, cotangent, w = (torch.randn(3, dim).to(dtype) for _ in range(3))
    before = w.double().clone()
    norms = torch.empty(3, 2, dtype=torch.float64)
    damped.neumann_step_(vjp, cotangent, w, norms, damping=0.3)
    expected = 0.3 * (cotangent.double() + vjp.double()) + 0.7 * before
    assert_close(w, expected, dtype)
    assert_close(norms[:, 0], (expected - before).norm(dim=1), dtype)
    assert_close(norms[:, 1], expected.norm(dim=1), dtype)


def test_neumann_step_takes_strided_input(backend: str) -> None:
    vjp, cotangent, w = (torch.randn(3, 8, dtype=torch.float64) for _ in range(3))
    norms = torch.empty(3, 2, dtype=torch.float64)
    strided = w.clone()
    damped.neumann_step_(vjp, cotangent, w, norms, damping=0.3)
    columns = vjp.T.contiguous().T
    expanded = cotangent[:, :1].expand(3, 8)
    damped.neumann_step_(columns, cotangent, strided, norms, damping=0.3)
    assert torch.equal(w, strided)
    damped.neumann_step_(vjp, expanded, w, norms, damping=0.3)
    damped.neumann_step_(vjp, expanded.contiguous(), strided, norms, damping=0.3)
    assert torch.equal(w, strided)


@pytest.mark.parametrize(("batch", "dim"), [(0, 4), (3, 0)])
def test_empty_sizes(backend: str, batch: int, dim: int) -> None:
    z = torch.zeros(batch, dim)
    tables = Tables.new(batch, 5, z.device)
    damped.step_(z.clone(), z, z.clone(), tables, damped.new_scratch(z), damping=1.0, **OPTIONS)
    assert tables.active.item() == 0
    norms = torch.ones(batch, 2, dtype=torch.float64)
    damped.neumann_step_(z.clone(), z.clone(), z, norms, damping=0.5)
    assert not norms.any()


def test_opcheck(fused_backend: str) -> None:
    z = torch.randn(2, 7)
    tables = Tables.new(2, 5, z.device)
    state = (z + 1.0, z, z.clone(), tables.record, tables.counters, tables.active)
    scratch = damped.new_scratch(z).zero_()
    torch.library.opcheck(OPS["damped_step_"].overload, (*state, scratch, 1e-3, 0.0, 1.0, 0, 1e6))
    norms = torch.zeros(2, 2, dtype=torch.float64)
    torch.library.opcheck(
        OPS["neumann_step_"].overload, (z.clone(), z.clone(), z.clone(), norms, 0.5)
    )
