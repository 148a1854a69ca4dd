"""The Broyden step and its products in Triton, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.ops import broyden
from deq_kernels.ops.termination import Counter, Norm, Tables
from python_tests.gpu.against_float64 import (
    Layout,
    check_broyden_product,
    check_broyden_step,
    same_bits,
)
from python_tests.gpu.broyden_options import (
    check_dropping_step,
    check_estimating_step,
    check_scaled_step,
    check_searching_step,
)
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import (
    FATES,
    HISTORY_DTYPES,
    broyden_state,
    product_history,
    with_aligned_rows,
    with_odd_rows,
)

# One program per sample, of the smallest size and of the largest, and beyond: three passes.
WHOLE, LARGEST, TILED = 37, 4096, 4101
DIMS = (1, 3, 17, 300, 2049, LARGEST)
MAIN_DTYPES = (
    (torch.float64, torch.float64),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
)
OPTIONS = {"rtol": 0.0, "atol": 0.0, "stall_steps": 0, "divergence_factor": 1e6}


@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
def test_step(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_broyden_step(engine, broyden_state(WHOLE, *dtypes))


@pytest.mark.parametrize("dim", DIMS)
def test_step_of_any_size(engine: Engine, dim: int) -> None:
    check_broyden_step(engine, broyden_state(dim, torch.float32, torch.float32))


@pytest.mark.parametrize("dtypes", MAIN_DTYPES, ids=str)
def test_step_in_three_passes(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_broyden_step(engine, broyden_state(TILED, *dtypes))


@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step_that_leaves_no_inverse(engine: Engine, dim: int) -> None:
    state = broyden_state(dim, torch.float32, torch.float32, damping=0.5)
    check_broyden_step(engine, state, damping=0.5, finish_inverse=False)


@pytest.mark.parametrize("finish_inverse", [True, False])
@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step_that_drops_the_oldest_factor(engine: Engine, dim: int, finish_inverse: bool) -> None:
    check_dropping_step(engine, dim, torch.float32, torch.bfloat16, finish_inverse=finish_inverse)


@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step_that_estimates_the_initial_scale(engine: Engine, dim: int) -> None:
    check_estimating_step(engine, dim, torch.float32, torch.float32)


@pytest.mark.parametrize("dtypes", MAIN_DTYPES, ids=str)
@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step_of_a_line_search(
    engine: Engine, dim: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    check_searching_step(engine, dim, *dtypes)


@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step_with_scaled_directions(engine: Engine, dim: int) -> None:
    check_scaled_step(engine, dim, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("layout", [with_aligned_rows, with_odd_rows])
def test_step_on_rows_that_lie_apart(engine: Engine, layout: Layout) -> None:
    state = broyden_state(1000, torch.float32, torch.bfloat16)
    check_broyden_step(engine, state, layout=layout, f_layout=with_odd_rows)


def test_step_with_many_directions(engine: Engine) -> None:
    """Around the groups of rows that are read together, and more than 32 of them."""
    state = broyden_state(
        WHOLE, torch.float64, torch.float64, capacity=37, counts=(7, 8, 9, 16, 31, 32, 33, 36)
    )
    check_broyden_step(engine, state)


def test_step_with_room_for_one_direction(engine: Engine) -> None:
    """Every second step starts again."""
    z = torch.zeros(2, 5, device=engine.device)
    history = broyden.History.new(z, 0, None)
    tables = Tables.new(2, 5, z.device)
    for _ in range(4):
        before = z.clone()
        f_z = z + torch.randn_like(z)
        broyden.step_(
            *(f_z, z, torch.empty_like(z), history, tables),
            **OPTIONS,
            damping=0.5,
            gamma=1.0,
            finish_inverse=True,
        )
        torch.testing.assert_close(z, before + 0.5 * (f_z - before), rtol=0.0, atol=1e-6)
        assert tables.counters[:, Counter.COUNT].tolist() == [1, 1]


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_guards_skip_a_factor(engine: Engine, damping: float) -> None:
    """Newest directions that are zero, and such that the denominator vanishes (p_k = -w)."""
    gamma = 0.8  # of the check
    advances, restarts_not = FATES.index("advances"), FATES.index("advances, no new best")
    state = broyden_state(17, torch.float64, torch.float64, counts=(1, 2, 2, 1, 3), damping=damping)
    assert state.directions is not None
    residual = state.f_z - state.z
    state.directions[FATES.index("first evaluation") + 3, 0] = 0.0
    r, (p_0, p_1) = residual[advances], state.directions[advances, :2]
    c_0 = -gamma * (p_0 @ r) / (p_0 @ p_0)
    p_1.copy_((gamma * r - c_0 * (damping - 1.0) * p_0) / (1.0 + c_0))
    state.directions[restarts_not, 1] = 0.0
    after = check_broyden_step(engine, state, damping=damping)
    assert after.algebra is not None
    assert after.algebra[advances, 1, -1] == 0.0
    assert after.algebra[restarts_not, 1, -1] == 0.0


def test_the_history_is_rounded_as_torch_rounds(engine: Engine) -> None:
    """From H₀ = -I and z = 0 the first direction is f(z) itself, bit for bit."""
    ties = [1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -1.0 - 2.0**-8, 1.0 + 2.0**-8 + 2.0**-23]
    edges = [0.0, -0.0, 3.3895314e38, 1.1754942e-38, 1e-39, -1e-45]
    f_z = torch.tensor(ties + edges, device=engine.device)[None]
    f_z = torch.cat((f_z, torch.randn(1, 200, device=engine.device)), dim=1)
    for dtype in (torch.bfloat16, torch.float32):
        z = torch.zeros_like(f_z)
        history, tables = broyden.History.new(z, 2, dtype), Tables.new(1, 5, z.device)
        broyden.step_(
            *(f_z, z, torch.empty_like(z), history, tables),
            **OPTIONS,
            damping=1.0,
            gamma=1.0,
            finish_inverse=True,
        )
        # Such numbers are stored scaled by a power of two, which rounds nothing but subnormals.
        scale = tables.norms[0, Norm.SCALE].item()
        assert scale == 2.0**-96
        assert same_bits(history.directions[0, 0], (scale * f_z[0]).to(dtype))
        # But for zeros and what lies below the normal numbers, z moved by as much.
        torch.testing.assert_close(z, f_z.to(dtype).float(), rtol=0.0, atol=1e-37)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtypes", HISTORY_DTYPES, ids=str)
def test_product(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype], transpose: bool) -> None:
    x = torch.randn(4, 1, WHOLE).to(dtypes[0])
    history = product_history(4, 4, WHOLE, dtypes[1])
    check_broyden_product(engine, history, x, transpose=transpose)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dim", [1, 300, TILED])
def test_product_of_several_columns(engine: Engine, dim: int, transpose: bool) -> None:
    x = torch.randn(3, 3, dim)
    history = product_history(3, 3, dim, torch.bfloat16)
    check_broyden_product(engine, history, x, transpose=transpose)


@pytest.mark.parametrize("transpose", [False, True])
def test_product_of_many_factors(engine: Engine, transpose: bool) -> None:
    history = product_history(5, 34, 301, torch.float64, ranks=(15, 16, 31, 32, 33))
    x = torch.randn(5, 1, 301, dtype=torch.float64)
    check_broyden_product(engine, history, x, transpose=transpose)


def test_a_rank_beyond_the_rows_gives_nan(engine: Engine) -> None:
    """It cannot be reported without waiting for the device; the other samples are unharmed."""
    directions, algebra, rank = product_history(4, 3, 20, torch.float32)
    x = torch.randn(4, 1, 20)
    expected = check_broyden_product(engine, (directions, algebra, rank), x, transpose=False)
    rank[1], rank[2] = 3, -1
    own = [tensor.to(engine.device) for tensor in (directions, algebra, rank, x)]
    product = broyden.matvec(*own).cpu()
    assert product[1:3].isnan().all()
    product = broyden.matvec(*own, scale=-0.6).cpu()
    assert same_bits(product[[0, 3]], expected[[0, 3]])


def test_arguments_are_named(engine: Engine) -> None:
    z = torch.zeros(2, 6, device=engine.device)
    history, tables = broyden.History.new(z, 3, None), Tables.new(2, 5, z.device)
    options = {**OPTIONS, "damping": 1.0, "gamma": 1.0, "finish_inverse": True}
    cases = {
        "f_z must have size 6 in dimension 1, got 5": (z[:, :5].clone(), z, z.clone()),
        "f_z must have dtype torch.float32, got torch.float64": (z.double(), z, z.clone()),
        "best_z must have dtype torch.float32, got torch.float16": (z.clone(), z, z.half()),
        "z must be contiguous": (z.clone(), z.T.contiguous().T, z.clone()),
        "z must be float64, float32, float16 or bfloat16, got torch.int64": (z, z.long(), z),
    }
    for message, (f_z, iterates, best) in cases.items():
        with pytest.raises(RuntimeError, match=message):
            broyden.step_(f_z, iterates, best, history, tables, **options)
    other = broyden.History.new(z, 2, None)
    mixed = broyden.History(history.directions, other.algebra, history.scratch)
    with pytest.raises(RuntimeError, match="algebra must have size 4 in dimension 1, got 3"):
        broyden.step_(z.clone(), z, z.clone(), mixed, tables, **options)
    half = broyden.History(history.directions.half(), history.algebra, history.scratch)
    with pytest.raises(RuntimeError, match="history must have the state's dtype, bfloat16 or"):
        broyden.step_(z.clone(), z, z.clone(), half, tables, **options)
