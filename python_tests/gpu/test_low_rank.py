"""The sum-form inverse against the float64 reference, in every regime."""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.against_float64 import (
    Layout,
    as_it_is,
    check_low_rank_append,
    check_low_rank_halves,
    check_low_rank_product,
)
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import (
    DTYPES,
    HISTORY_DTYPES,
    factors,
    with_aligned_rows,
    with_odd_rows,
)

DIMS = (7, 2047, 2049, 6151)
LAYOUTS = (as_it_is, with_aligned_rows, with_odd_rows)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_products(engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    state_dtype, factor_dtype = dtypes
    x = torch.randn(6, 3, dim).to(state_dtype)
    check_low_rank_product(engine, factors(6, 5, dim, factor_dtype), x)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_halves(engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    state_dtype, factor_dtype = dtypes
    rows, _, count = factors(6, 5, dim, factor_dtype)
    check_low_rank_halves(engine, rows, count, torch.randn(6, 3, dim).to(state_dtype))


def test_products_on_many_tiles(engine: Engine) -> None:
    check_low_rank_product(
        engine, factors(3, 4, 131_073, torch.float32), torch.randn(3, 1, 131_073)
    )


def test_products_of_high_rank(engine: Engine) -> None:
    x = torch.randn(6, 1, 2100)
    ranks = (31, 32, 33, 64, 65, 70)
    held = factors(6, 70, 2100, torch.float32, ranks=ranks)
    check_low_rank_product(engine, held, x)
    check_low_rank_halves(engine, held[0], held[2], x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_rows(engine: Engine, layout: Layout, dtype: torch.dtype) -> None:
    held = factors(5, 4, 4099, dtype)
    x = torch.randn(5, 2, 4099).to(dtype)
    plain = check_low_rank_product(engine, held, x)
    assert torch.equal(check_low_rank_product(engine, held, x, layout=layout), plain)
    halves = check_low_rank_halves(engine, held[0], held[2], x)
    others = check_low_rank_halves(engine, held[0], held[2], x, layout=layout)
    assert all(map(torch.equal, others, halves))
    s = torch.randn(5, 4099).to(dtype)
    check_low_rank_append(engine, held, s, (-s.float()).to(dtype), layout=layout)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_append(engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Ranks from none to full, a pair that is refused, and one with a NaN."""
    state_dtype, factor_dtype = dtypes
    s = torch.randn(8, dim).to(state_dtype)
    y = (0.2 * torch.randn(8, dim) - s.float()).to(state_dtype)
    s[6] = 0.0
    y[7, dim // 2] = torch.nan
    check_low_rank_append(engine, factors(8, 5, dim, factor_dtype), s, y)
