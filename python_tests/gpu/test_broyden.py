"""The Broyden step and its products against the float64 reference, in every regime."""

from __future__ import annotations

import pytest
import torch

from python_tests.gpu.against_float64 import (
    Layout,
    as_it_is,
    check_broyden_product,
    check_broyden_step,
)
from python_tests.gpu.broyden_options import (
    OptionCheck,
    check_dropping_step,
    check_estimating_step,
    check_scaled_step,
    check_searching_step,
)
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import (
    DTYPES,
    HISTORY_DTYPES,
    broyden_state,
    product_history,
    with_aligned_rows,
    with_odd_rows,
)

# Around one tile of 2048 elements, two of the CPU's, and beyond one tile for each of the sixteen
# blocks of the largest cluster.
DIMS = (7, 2047, 2048, 2049, 6151)
LARGE_DIMS = (40_003, 131_073)
LAYOUTS = (as_it_is, with_aligned_rows, with_odd_rows)


def _id(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_id, value))
    return getattr(value, "__name__", str(value)).removeprefix("torch.")


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=_id)
@pytest.mark.parametrize("dim", DIMS)
def test_step(engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_broyden_step(engine, broyden_state(dim, *dtypes))


@pytest.mark.parametrize("dim", LARGE_DIMS)
@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16], ids=_id)
def test_step_on_many_tiles(engine: Engine, dim: int, history_dtype: torch.dtype) -> None:
    check_broyden_step(engine, broyden_state(dim, torch.float32, history_dtype))


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES[:5], ids=_id)
@pytest.mark.parametrize("layout", LAYOUTS, ids=_id)
def test_step_on_any_rows(
    engine: Engine, layout: Layout, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    state = broyden_state(4099, *dtypes)
    check_broyden_step(engine, state, layout=layout, f_layout=with_odd_rows)


@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16], ids=_id)
def test_step_with_many_directions(engine: Engine, history_dtype: torch.dtype) -> None:
    """Around the 32 rows whose dots are collected between two barriers, and twice as many."""
    counts = (31, 32, 33, 63, 64, 65, 69)
    state = broyden_state(2100, torch.float32, history_dtype, capacity=70, counts=counts)
    check_broyden_step(engine, state)


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_step_that_leaves_no_inverse(engine: Engine, damping: float) -> None:
    state = broyden_state(3001, torch.float32, torch.float32, damping=damping)
    check_broyden_step(engine, state, damping=damping, finish_inverse=False)


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES[:5], ids=_id)
@pytest.mark.parametrize("dim", [*DIMS, LARGE_DIMS[0]])
@pytest.mark.parametrize("check", [check_dropping_step, check_searching_step], ids=_id)
def test_step_with_an_option(
    engine: Engine, check: OptionCheck, dim: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    check(engine, dim, *dtypes)


# An estimate from float16 or bfloat16 rows, and a float64's range, are other matters.
@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16], ids=_id)
@pytest.mark.parametrize("dim", [*DIMS, LARGE_DIMS[0]])
@pytest.mark.parametrize("check", [check_estimating_step, check_scaled_step], ids=_id)
def test_step_with_an_option_about_scales(
    engine: Engine, check: OptionCheck, dim: int, history_dtype: torch.dtype
) -> None:
    check(engine, dim, torch.float32, history_dtype)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=_id)
@pytest.mark.parametrize("dim", DIMS)
def test_product(
    engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype], transpose: bool
) -> None:
    state_dtype, history_dtype = dtypes
    x = torch.randn(6, 3, dim).to(state_dtype)
    history = product_history(6, 5, dim, history_dtype)
    check_broyden_product(engine, history, x, transpose=transpose)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dim", LARGE_DIMS)
def test_product_on_many_tiles(engine: Engine, dim: int, transpose: bool) -> None:
    x = torch.randn(3, 2, dim)
    check_broyden_product(engine, product_history(3, 4, dim, torch.float32), x, transpose=transpose)


@pytest.mark.parametrize("layout", LAYOUTS, ids=_id)
@pytest.mark.parametrize("dtype", DTYPES, ids=_id)
def test_product_on_any_rows(engine: Engine, layout: Layout, dtype: torch.dtype) -> None:
    x = torch.randn(5, 1, 4099).to(dtype)
    history = product_history(5, 5, 4099, dtype)
    plain = check_broyden_product(engine, history, x, transpose=False)
    assert torch.equal(
        check_broyden_product(engine, history, x, transpose=False, layout=layout), plain
    )


def test_product_with_many_directions(engine: Engine) -> None:
    history = product_history(7, 70, 2100, torch.float32, ranks=(30, 31, 32, 33, 63, 64, 69))
    x = torch.randn(7, 2, 2100)
    for transpose in (False, True):
        check_broyden_product(engine, history, x, transpose=transpose)
