"""Every op, dtype and regime on small shapes: quick to run where each access is checked.

compute-sanitizer runs this file. Everything but the ops themselves is computed on the CPU, so that
little else than their kernels is checked.
"""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.against_float64 import (
    check_anderson_step,
    check_broyden_product,
    check_broyden_step,
    check_cell,
    check_damped_step,
    check_low_rank_append,
    check_low_rank_halves,
    check_low_rank_product,
    check_neumann_step,
)
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import (
    HISTORY_DTYPES,
    anderson_state,
    broyden_state,
    cell_state,
    damped_state,
    factors,
    product_history,
)

# Part of a tile, and three tiles of which the last is short.
DIMS = (37, 4101)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
def test_every_op(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, history_dtype = dtypes
    for dim in DIMS:
        check_broyden_step(engine, broyden_state(dim, dtype, history_dtype))
        check_anderson_step(engine, anderson_state(dim, dtype, history_dtype))
        x, s, y = (torch.randn(3, dim).to(dtype) for _ in range(3))
        for transpose in (False, True):
            history = product_history(3, 4, dim, history_dtype)
            check_broyden_product(engine, history, x[:, None], transpose=transpose)
        pairs = factors(3, 3, dim, history_dtype)
        check_low_rank_product(engine, pairs, x[:, None])
        check_low_rank_halves(engine, pairs[0], pairs[2], x[:, None])
        check_low_rank_append(engine, pairs, s, (0.2 * y.float() - s.float()).to(dtype))
        if history_dtype == dtype:  # what knows no history is checked once
            check_damped_step(engine, damped_state(dim, dtype))
            check_neumann_step(engine, x, s, y)
    if history_dtype == dtype:
        for options in ({"fixed_steps": True}, {"accelerate": False}, {"accelerate": True}):
            check_cell(engine, cell_state(3, 70, 37, dtype), **options)
            check_cell(engine, cell_state(6, None, 37, dtype), **options)
