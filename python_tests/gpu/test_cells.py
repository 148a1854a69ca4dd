"""Structured cells against the float64 reference, in every regime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.ops import cells
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.termination import Tables
from python_tests.gpu.against_float64 import check_cell, same_bits
from python_tests.gpu.engines import CUDA_ENGINES, Engine, running
from python_tests.gpu.states import (
    CELL_STEPS,
    DEGREE,
    DTYPES,
    CellState,
    cell_state,
    copy_to,
    solved_rows,
)

# Graphs of part of a tile of rows, of several, and of so many that blocks share them. Widths beyond
# what stays on chip: 300 in float32 and float64, and 600 in all.
ROWS = (1, 40, 700)
DIMS = (1, 64, 100, 300, 600)
# Empty graphs, graphs that blocks take alone and graphs that they share.
RAGGED = (0, 3, 64, 65, 0, 1500, 1)

OPTIONS: dict[str, Any] = {
    "activation": Activation.TANH,
    "rtol": 0.0,
    "atol": 1e-5,
    "damping": 1.0,
    "norm": NormKind.TWO,
    "stall_steps": 0,
    "divergence_factor": 1e6,
}


def ragged_graphs(dim: int, dtype: torch.dtype) -> list[CellState]:
    """One graph for each entry of `RAGGED`."""
    return [cell_state(1, rows, dim, dtype) for rows in RAGGED]


@pytest.mark.parametrize("fixed_steps", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_graphs(engine: Engine, dim: int, dtype: torch.dtype, *, fixed_steps: bool) -> None:
    for rows in ROWS:
        samples = 4 if rows > 100 else 9
        norm = NormKind.MAX if rows == ROWS[1] else NormKind.TWO
        if rows * dim <= 45_000:
            state = cell_state(samples, rows, dim, dtype)
            check_cell(engine, state, norm=norm, fixed_steps=fixed_steps)


@pytest.mark.parametrize("fixed_steps", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_rows(engine: Engine, dim: int, dtype: torch.dtype, *, fixed_steps: bool) -> None:
    for samples, norm in ((9, NormKind.TWO), (400 if dim < 300 else 70, NormKind.MAX)):
        state = cell_state(samples, None, dim, dtype)
        check_cell(engine, state, norm=norm, fixed_steps=fixed_steps)


@pytest.mark.parametrize("norm", list(NormKind))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 64, 300])
def test_accelerated_steps(engine: Engine, dim: int, dtype: torch.dtype, norm: NormKind) -> None:
    for rows in (40, 130, None):
        check_cell(engine, cell_state(6, rows, dim, dtype), norm=norm, accelerate=True)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(engine: Engine, dtype: torch.dtype, activation: Activation) -> None:
    for rows in (20, None):
        state = cell_state(5, rows, 33, dtype)
        check_cell(engine, state, activation=activation, fixed_steps=True)


def test_long_products_are_rounded_no_more_often_than_short_ones(engine: Engine) -> None:
    cell = copy_to(solved_rows(5, 1000), engine.device)
    cell.iterate(**{**OPTIONS, "activation": Activation.IDENTITY, "norm": NormKind.MAX})
    assert cell.tables.trace.max() <= 4e-7 * cell.z.max()


def solve_ragged(device: torch.device, graphs: list[CellState]) -> list[Tensor]:
    """Graphs of different sizes in one call; returns what it leaves, on the CPU."""
    own = [copy_to(graph, device) for graph in graphs]
    each = [graph.arguments() for graph in own]
    sizes = torch.tensor([0, *(graph.z.shape[1] for graph in own)], device=device)
    starts = sizes.cumsum(0)
    tables = Tables.new(len(own), CELL_STEPS, device)
    z = torch.cat([graph.z[0] for graph in own])
    cells.iterate_(
        z,
        tables,
        own[0].weight[0],
        torch.cat([graph.bias[0] for graph in own]),
        scale=torch.cat([part["scale"] for part in each]),
        crow=torch.arange(len(z) + 1, device=device) * DEGREE,
        col=torch.cat([part["col"] + start for part, start in zip(each, starts, strict=False)]),
        values=torch.cat([part["values"] for part in each]),
        sample_ptr=starts,
        **OPTIONS,
    )
    return [z.cpu(), tables.record.cpu(), tables.counters.cpu()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [3, 64, 200])
def test_ragged_graphs_are_solved_as_alone(engine: Engine, dim: int, dtype: torch.dtype) -> None:
    graphs = ragged_graphs(dim, dtype)
    together = solve_ragged(engine.device, graphs)
    parts = together[0].split(RAGGED)
    for number, graph in enumerate(graphs):
        weighted = replace(graph, weight=graphs[0].weight)
        alone = solve_ragged(engine.device, [weighted])
        assert same_bits(alone[0], parts[number])
        assert same_bits(alone[1][0], together[1][number])
        assert same_bits(alone[2][0], together[2][number])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [3, 64, 200])
def test_regimes_agree_on_ragged_graphs(dim: int, dtype: torch.dtype) -> None:
    graphs = ragged_graphs(dim, dtype)
    results = []
    for name in CUDA_ENGINES:
        with running(name) as engine:
            results.append(solve_ragged(engine.device, graphs))
    for result in results[1:]:
        for now, before in zip(result, results[0], strict=True):
            assert same_bits(now, before)


def test_a_cell_is_solved_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its regime, and whether its iterates find room on chip or not."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    starts = (cell_state(9, 40, 64, torch.float32), cell_state(1, 900, 300, torch.float32))
    for name in CUDA_ENGINES:
        with running(name) as engine:
            for start in starts:
                cell = copy_to(start, engine.device)
                arguments = cell.arguments()
                torch.cuda.synchronize()
                activities = [torch.profiler.ProfilerActivity.CUDA]
                with torch.profiler.profile(activities=activities) as profile:
                    cell.iterate(arguments, **OPTIONS)
                    torch.cuda.synchronize()
                on_device = (
                    event.name
                    for event in profile.events()
                    if event.device_type == torch.autograd.DeviceType.CUDA
                )
                kernels = [kernel for kernel in on_device if "kernel" in kernel]
                assert len(kernels) == 1, kernels
