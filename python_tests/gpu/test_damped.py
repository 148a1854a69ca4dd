"""The damped step and the Neumann series against the float64 reference, in every regime."""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.against_float64 import check_damped_step, check_neumann_step
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import DTYPES, damped_state, with_odd_rows

DIMS = (7, 2047, 2048, 2049, 6151, 131_073)


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_step(engine: Engine, dim: int, dtype: torch.dtype, damping: float) -> None:
    check_damped_step(engine, damped_state(dim, dtype), damping=damping)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_on_odd_rows(engine: Engine, dtype: torch.dtype) -> None:
    check_damped_step(engine, damped_state(4099, dtype), f_layout=with_odd_rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_neumann_step(engine: Engine, dim: int, dtype: torch.dtype) -> None:
    vjp, cotangent, w = (torch.randn(5, dim).to(dtype) for _ in range(3))
    check_neumann_step(engine, vjp, cotangent, w)
