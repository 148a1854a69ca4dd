"""The step of GMRES against the float64 reference, in every regime."""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.against_float64 import check_gmres_step
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import DTYPES, gmres_state, with_odd_rows

DIMS = (7, 2047, 2048, 2049, 6151, 131_073)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_step(engine: Engine, dim: int, dtype: torch.dtype) -> None:
    check_gmres_step(engine, gmres_state(dim, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_on_odd_rows(engine: Engine, dtype: torch.dtype) -> None:
    check_gmres_step(engine, gmres_state(4099, dtype), f_layout=with_odd_rows)
