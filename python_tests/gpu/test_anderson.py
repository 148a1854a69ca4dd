"""The Anderson step against float64 algebra, in every regime."""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.against_float64 import Layout, as_it_is, check_anderson_step
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import (
    HISTORY_DTYPES,
    anderson_state,
    with_aligned_rows,
    with_odd_rows,
)

# Around one tile of 2048 elements, two of the CPU's, and beyond one tile for each of the sixteen
# blocks of the largest cluster.
DIMS = (7, 2047, 2048, 2049, 6151)
LARGE_DIMS = (40_003, 131_073)
LAYOUTS = (as_it_is, with_aligned_rows, with_odd_rows)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_step(engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_anderson_step(engine, anderson_state(dim, *dtypes))


@pytest.mark.parametrize("dim", LARGE_DIMS)
@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_on_many_tiles(engine: Engine, dim: int, history_dtype: torch.dtype) -> None:
    check_anderson_step(engine, anderson_state(dim, torch.float32, history_dtype))


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES[:5], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_step_on_any_rows(
    engine: Engine, layout: Layout, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    state = anderson_state(4099, *dtypes)
    check_anderson_step(engine, state, layout=layout, f_layout=with_odd_rows)


@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_with_many_changes(engine: Engine, history_dtype: torch.dtype) -> None:
    """Around the 32 rows whose dots are collected between two barriers, and twice as many."""
    seen = (31, 32, 33, 63, 64, 65, 69, 70, 71, 130)
    state = anderson_state(2100, torch.float32, history_dtype, capacity=70, seen=seen)
    check_anderson_step(engine, state)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES[:5], ids=str)
def test_step_with_scaled_changes(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_anderson_step(engine, anderson_state(4099, *dtypes, scale=2.0**-7))


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("capacity", [0, 1])
def test_windows_of_one_and_of_two(engine: Engine, capacity: int, damping: float) -> None:
    state = anderson_state(3001, torch.float32, torch.float32, capacity=capacity)
    check_anderson_step(engine, state, damping=damping)
