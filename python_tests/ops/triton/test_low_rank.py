"""The sum-form inverse in Triton, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.ops import low_rank
from python_tests.gpu.against_float64 import (
    check_low_rank_append,
    check_low_rank_halves,
    check_low_rank_product,
)
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import HISTORY_DTYPES, factors, with_odd_rows

WHOLE, TILED = 37, 4101


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
def test_product_and_append(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, history_dtype = dtypes
    x, s, y = (torch.randn(4, WHOLE).to(dtype) for _ in range(3))
    pairs = factors(4, 3, WHOLE, history_dtype)
    check_low_rank_product(engine, pairs, x[:, None])
    check_low_rank_halves(engine, pairs[0], pairs[2], x[:, None])
    check_low_rank_append(engine, pairs, s, (0.2 * y.float() - s.float()).to(dtype))


@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 300, TILED])
def test_any_size(engine: Engine, dim: int, history_dtype: torch.dtype) -> None:
    x, s = torch.randn(3, 2, dim), torch.randn(3, dim)
    pairs = factors(3, 2, dim, history_dtype)
    check_low_rank_product(engine, pairs, x, layout=with_odd_rows)
    check_low_rank_halves(engine, pairs[0], pairs[2], x, layout=with_odd_rows)
    check_low_rank_append(engine, pairs, s, 0.2 * torch.randn(3, dim) - s, layout=with_odd_rows)


def test_many_factors(engine: Engine) -> None:
    pairs = factors(4, 33, 17, torch.float64, ranks=(15, 16, 32, 33))
    x, s = torch.randn(4, 1, 17).double(), torch.randn(4, 17).double()
    check_low_rank_product(engine, pairs, x)
    check_low_rank_halves(engine, pairs[0], pairs[2], x)
    check_low_rank_append(engine, pairs, s, 0.2 * x[:, 0] - s)


def test_a_rank_beyond_the_rows(engine: Engine) -> None:
    """Products are NaN, pairs are refused, and the other samples are unharmed."""
    u, v, rank = (tensor.to(engine.device) for tensor in factors(3, 2, 9, torch.float32))
    x, s = torch.randn(3, 1, 9, device=engine.device), torch.randn(3, 9, device=engine.device)
    expected = low_rank.matvec(u, v, rank, x)
    rank[1] = 3
    product = low_rank.matvec(u, v, rank, x)
    assert product[1].isnan().all()
    assert torch.equal(product[[0, 2]], expected[[0, 2]])
    dots = low_rank.dots(u, rank, x)
    assert dots[1].isnan().all()
    assert not dots[[0, 2]].isnan().any()
    combined = low_rank.combine(u, rank, dots.nan_to_num(), x, scale=0.0)
    assert combined[1].isnan().all()
    assert not combined[[0, 2]].isnan().any()
    assert low_rank.append_(u, v, rank, s, -s).tolist() == [True, False, False]
    assert rank.tolist() == [1, 3, 2]


def test_arguments_are_named(engine: Engine) -> None:
    u, v, rank = (tensor.to(engine.device) for tensor in factors(3, 2, 9, torch.float32))
    x = torch.zeros(3, 1, 9, device=engine.device)
    with pytest.raises(RuntimeError, match=r"u must have dtype torch\.float16, got"):
        low_rank.matvec(u, v.half(), rank, x.half())
    with pytest.raises(RuntimeError, match="v must have size 9 in dimension 2, got 8"):
        low_rank.matvec(u, v[:, :, :8], rank, x)
    with pytest.raises(RuntimeError, match=r"rank must have dtype torch\.int64"):
        low_rank.append_(u, v, rank.int(), x[:, 0], x[:, 0])
    with pytest.raises(RuntimeError, match=r"u must be dense in its last dimension; pass u\."):
        low_rank.matvec(u.transpose(1, 2).contiguous().transpose(1, 2), v, rank, x)
