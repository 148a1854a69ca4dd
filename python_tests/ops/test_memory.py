"""The pool of history buffers, as seen from Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses import FakeTensorMode

import deq_kernels as dk
from deq_kernels.ops import OPS, memory

SHAPE = (2, 10, 150_000)


@pytest.fixture
def unfilled() -> Iterator[None]:
    """Memory as users have it, and an empty pool before and after."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    dk.empty_cache()
    yield
    dk.empty_cache()
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.usefixtures("unfilled")
def test_a_freed_history_serves_the_next_solve() -> None:
    like = torch.empty(1)
    first = memory.new_history(like, SHAPE, torch.float32)
    assert first.shape == SHAPE
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    first.fill_(3.0)
    address = first.data_ptr()
    view = first[1]
    del first
    assert memory.new_history(like, SHAPE, torch.float32).data_ptr() != address
    assert view[0, 0] == 3.0
    del view
    dk.empty_cache()
    second = memory.new_history(like, SHAPE, torch.bfloat16)
    address = second.data_ptr()
    del second
    assert memory.new_history(like, SHAPE, torch.bfloat16).data_ptr() == address


@pytest.mark.usefixtures("unfilled")
def test_empty_cache_says_what_it_gave_back() -> None:
    history = memory.new_history(torch.empty(1), SHAPE, torch.float32)
    assert dk.empty_cache() == 0
    del history
    released = dk.empty_cache()
    assert 12_000_000 <= released <= 12_000_000 + (2 << 20)
    assert dk.empty_cache() == 0


@pytest.mark.usefixtures("unfilled")
def test_small_histories_are_torchs_own() -> None:
    history = memory.new_history(torch.empty(1), (2, 3, 4), torch.float64)
    assert history.shape == (2, 3, 4)
    del history
    assert dk.empty_cache() == 0


@pytest.mark.usefixtures("unfilled")
def test_what_an_earlier_solve_left_behind_changes_nothing() -> None:
    """A reused buffer full of NaN gives the same bits as a fresh one."""
    gain = torch.linspace(-2.0, 0.9, 200_000)
    z0 = torch.randn(2, 200_000)
    solver = dk.Broyden(max_steps=8, rtol=0.0)

    def solve() -> dk.Solution:
        return solver(lambda z: gain * z + 1.0, z0)

    fresh = solve()
    product = fresh.inverse_jacobian.rmatvec(z0)
    fresh.inverse_jacobian.directions.fill_(torch.nan)
    address = fresh.inverse_jacobian.directions.data_ptr()
    kept_z, kept_trace = fresh.z, fresh.trace
    del fresh
    again = solve()
    assert again.inverse_jacobian.directions.data_ptr() == address
    assert torch.equal(again.z, kept_z)
    assert torch.equal(again.trace, kept_trace)
    assert torch.equal(again.inverse_jacobian.rmatvec(z0), product)


def test_filled_memory_is_asked_of_torch() -> None:
    assert memory.new_history(torch.empty(1), SHAPE, torch.float32).isnan().all()


@pytest.mark.usefixtures("unfilled")
def test_opcheck() -> None:
    utilities = ("test_schema", "test_faketensor")
    overload = OPS["history_memory"].overload
    torch.library.opcheck(overload, (torch.empty(1), 64), test_utils=utilities)
    with pytest.raises(RuntimeError, match="at least one byte"):
        overload(torch.empty(1), 0)


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize(
    ("dtype", "dim", "stride"),
    [
        (torch.float64, 7, 8),
        (torch.float32, 7, 8),
        (torch.float32, 8, 8),
        (torch.float16, 9, 16),
        (torch.bfloat16, 1, 8),
        (torch.float32, 0, 0),
    ],
)
def test_rows_on_a_gpu_begin_at_multiples_of_16_bytes(
    dtype: torch.dtype, dim: int, stride: int
) -> None:
    with FakeTensorMode():
        history = memory.new_history(torch.empty(1, device="cuda"), (2, 3, dim), dtype)
    assert history.shape == (2, 3, dim)
    assert history.dtype == dtype
    assert history.device.type == "cuda"
    if dim:
        assert history.stride() == (3 * stride, stride, 1)
        assert stride * dtype.itemsize % 16 == 0
