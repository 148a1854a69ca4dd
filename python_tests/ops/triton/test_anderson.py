"""The Anderson step in Triton, against float64 algebra."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.ops import anderson
from deq_kernels.ops.termination import Tables
from python_tests.gpu.against_float64 import Layout, check_anderson_step
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import (
    FATES,
    HISTORY_DTYPES,
    anderson_state,
    copy_to,
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
    check_anderson_step(engine, anderson_state(WHOLE, *dtypes))


@pytest.mark.parametrize("dim", DIMS)
def test_step_of_any_size(engine: Engine, dim: int) -> None:
    check_anderson_step(engine, anderson_state(dim, torch.float32, torch.float32))


@pytest.mark.parametrize("dtypes", MAIN_DTYPES, ids=str)
def test_step_in_three_passes(engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_anderson_step(engine, anderson_state(TILED, *dtypes))


@pytest.mark.parametrize("layout", [with_aligned_rows, with_odd_rows])
def test_step_on_rows_that_lie_apart(engine: Engine, layout: Layout) -> None:
    state = anderson_state(1000, torch.float32, torch.bfloat16)
    check_anderson_step(engine, state, layout=layout, f_layout=with_odd_rows)


def test_step_with_many_changes(engine: Engine) -> None:
    """Around the groups of rows that are read together, and more than 32 of them."""
    seen = (7, 8, 9, 16, 31, 32, 33, 37, 38, 75)
    state = anderson_state(60, torch.float64, torch.float64, capacity=37, seen=seen)
    check_anderson_step(engine, state)


@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_step_with_scaled_changes(engine: Engine, dim: int) -> None:
    check_anderson_step(engine, anderson_state(dim, torch.float32, torch.bfloat16, scale=2.0**-7))


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("dim", [WHOLE, TILED])
def test_windows_of_one_and_of_two(engine: Engine, dim: int, capacity: int, damping: float) -> None:
    state = anderson_state(dim, torch.float32, torch.float32, capacity=capacity)
    check_anderson_step(engine, state, damping=damping)


def test_changes_that_lie_in_different_ways(engine: Engine) -> None:
    """Strides of the two kinds of changes are their own."""
    ends = []
    for apart in (False, True):
        torch.manual_seed(1)
        z = torch.randn(2, WHOLE, device=engine.device)
        window, tables = anderson.Window.new(z, 4, None), Tables.new(2, 9, z.device)
        images = with_odd_rows(window.image_changes) if apart else window.image_changes
        parts = {name: getattr(window, name) for name in window.__slots__}
        window = anderson.Window(**{**parts, "image_changes": images})
        for _ in range(6):
            f_z = z + torch.randn_like(z)
            anderson.step_(
                *(f_z, z, z.clone(), window, tables), **OPTIONS, damping=0.8, regularization=1e-3
            )
        ends.append(z)
    assert torch.equal(*ends)


def test_a_change_without_length_gets_no_weight(engine: Engine) -> None:
    """The guard skips a zero change, newest or not, and uses the others as if it were not there."""
    state = anderson_state(17, torch.float64, torch.float64, seen=(3,))  # slots 0 to 2, in order
    assert state.residual_changes is not None
    assert state.last_residual is not None
    assert state.algebra is not None
    newest, middle = FATES.index("advances"), FATES.index("advances, no new best")
    state.last_residual[newest] = state.f_z[newest] - state.z[newest]
    state.residual_changes[middle, 1] = 0.0
    state.algebra[middle, 1, :2] = state.algebra[middle, :2, 1] = 0.0
    given = copy_to(state, engine.device)
    window, z = given.window(), given.z
    anderson.step_(
        *(given.f_z, z, given.best_z, window, given.tables),
        **OPTIONS,
        damping=1.0,
        regularization=0.0,
    )
    for sample, others in ((newest, [0, 1]), (middle, [0, 2])):
        t = window.residual_changes[sample, others].cpu()
        gamma = torch.linalg.solve(t @ t.T, t @ (state.f_z - state.z)[sample])
        images = window.image_changes[sample, others].cpu()
        expected = state.f_z[sample] - gamma @ images
        torch.testing.assert_close(z[sample].cpu(), expected, rtol=1e-9, atol=1e-9)
