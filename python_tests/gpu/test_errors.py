"""Arguments that break an op's contract: named on the host, or caught by the device itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deq_kernels.ops import broyden, damped, low_rank
from deq_kernels.ops.termination import Tables
from python_tests.gpu.engines import REGIMES, Engine, why_absent
from python_tests.gpu.states import broyden_state, copy_to, factors, product_history

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"rtol": 0.0, "atol": 0.0, "stall_steps": 0, "divergence_factor": 1e6, "damping": 1.0}
STEP_OPTIONS = {**OPTIONS, "gamma": 1.0, "finish_inverse": True}
# A failed device check ends the process's use of the GPU, so it needs a process of its own.
RANK_BEYOND_THE_ROWS = """
import torch
from deq_kernels import _launches
from deq_kernels.ops import low_rank
u = torch.randn(2, 3, {dim}, device="cuda")
rank = torch.tensor([0, 7], device="cuda")
with _launches.force_regime("{regime}"):
    low_rank.matvec(u, u, rank, torch.randn(2, 1, {dim}, device="cuda"))
    torch.cuda.synchronize()
"""


COLUMN_BEYOND_THE_SAMPLE = """
import torch
from deq_kernels import _launches
from python_tests.gpu.states import cell_state, copy_to
from python_tests.gpu.test_cells import OPTIONS
cell = copy_to(cell_state(3, {rows}, 8, torch.float32), torch.device("cuda"))
cell.neighbours[0, 1, 1] = {rows}
with _launches.force_regime("{regime}"):
    cell.iterate(**OPTIONS)
    torch.cuda.synchronize()
"""


@pytest.mark.parametrize("engine", ["cuda"], indirect=True)
def test_a_tensor_of_another_device_is_named(engine: Engine) -> None:
    state = copy_to(broyden_state(40, torch.float32, torch.float32), engine.device)
    tables = Tables(state.record, state.counters.cpu(), state.active)
    with pytest.raises(RuntimeError, match="counters must be on the same device as z"):
        broyden.step_(state.f_z, state.z, state.best_z, state.history(), tables, **STEP_OPTIONS)
    directions, algebra, rank = product_history(3, 4, 40, torch.float32)
    x = torch.randn(3, 1, 40, device=engine.device)
    on_gpu = (directions.to(engine.device), algebra.to(engine.device))
    with pytest.raises(RuntimeError, match="rank must be on the same device as x"):
        broyden.matvec(*on_gpu, rank, x)


@pytest.mark.parametrize("engine", ["cpu", "cuda"], indirect=True)
def test_wrong_shapes_and_dtypes_are_named(engine: Engine) -> None:
    state = copy_to(broyden_state(40, torch.float32, torch.float32), engine.device)
    history, tables = state.history(), state.tables
    with pytest.raises(RuntimeError, match="f_z must have size 40 in dimension 1, got 39"):
        broyden.step_(
            *(state.f_z[:, :39].clone(), state.z, state.best_z, history, tables), **STEP_OPTIONS
        )
    with pytest.raises(RuntimeError, match="best_z must have dtype"):
        broyden.step_(state.f_z, state.z, state.best_z.half(), history, tables, **STEP_OPTIONS)
    strided, scratch = torch.stack((state.z, state.z), dim=2)[:, :, 0], damped.new_scratch(state.z)
    with pytest.raises(RuntimeError, match="z must be contiguous"):
        damped.step_(state.f_z, strided, state.best_z, tables, scratch, **OPTIONS)
    u, v, rank = (tensor.to(engine.device) for tensor in factors(3, 4, 40, torch.float32))
    with pytest.raises(RuntimeError, match="u must have dtype"):
        low_rank.matvec(u, v.half(), rank, torch.zeros(3, 1, 40, device=engine.device))


@pytest.mark.parametrize("dim", [40, 5000])
@pytest.mark.parametrize("regime", REGIMES)
def test_a_rank_beyond_the_rows_stops_the_device(regime: str, dim: int) -> None:
    """Nothing waits for a look at the ranks, and nothing is read where they point either."""
    if (absent := why_absent("cuda")) is not None:
        pytest.skip(absent)
    _expect_a_stopped_device(RANK_BEYOND_THE_ROWS.format(dim=dim, regime=regime))


@pytest.mark.parametrize("rows", [10, 200])
@pytest.mark.parametrize("regime", REGIMES)
def test_an_entry_that_leads_out_of_its_graph_stops_the_device(regime: str, rows: int) -> None:
    if (absent := why_absent("cuda")) is not None:
        pytest.skip(absent)
    _expect_a_stopped_device(COLUMN_BEYOND_THE_SAMPLE.format(rows=rows, regime=regime))


def _expect_a_stopped_device(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "CUDA error" in done.stderr, done.stdout + done.stderr
    assert "illegal memory access" not in done.stderr
