"""What no op may take: memory that is written to and shared, counters and ranks out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.ops import OPS, damped, low_rank
from deq_kernels.ops.termination import Counter, Norm
from deq_kernels.ops.tiles import tile_count

STEPS = 4
BEYOND = (-7, -(2**40), -(2**63), 2**63 - 1)


def damped_arguments() -> dict[str, Any]:
    """Of a step of two samples that were never evaluated."""
    z = torch.randn(2, 8)
    return {
        "f_z": torch.randn(2, 8),
        "z": z,
        "best_z": z.clone(),
        "record": torch.zeros(2, len(Norm) + STEPS, dtype=torch.float64),
        "counters": torch.zeros(2, len(Counter), dtype=torch.int64),
        "active": torch.tensor([2]),
        "scratch": torch.zeros(2, tile_count(8, z.device.type) + 1, 2, dtype=torch.float64),
        "rtol": 0.0,
        "atol": 0.0,
        "damping": 1.0,
        "stall_steps": 0,
        "divergence_factor": 1e6,
    }


def damped_step(**changed: Any) -> None:
    OPS["damped_step_"].call(*{**damped_arguments(), **changed}.values())


@pytest.mark.parametrize("column", [Counter.STEPS, Counter.REJECTIONS, Counter.PROGRESS_STEP])
@pytest.mark.parametrize("value", BEYOND)
def test_counters_out_of_range(backend: str, column: Counter, value: int) -> None:
    arguments = damped_arguments()
    arguments["counters"][1, column] = value
    if backend == "cuda":
        pytest.skip("stops the device")
    if backend == "triton":
        before = arguments["z"][1].clone()
        damped_step(**arguments)
        if column == Counter.STEPS:  # what the others are, no address depends on
            assert arguments["z"][1].equal(before)
            assert arguments["record"][1].eq(0.0).all()
        return
    with pytest.raises(RuntimeError, match=rf"got {value} in column {int(column)} of sample 1"):
        damped_step(**arguments)
    assert arguments["record"].eq(0.0).all()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rank", [-1, 3, *BEYOND])
def test_a_rank_that_no_rows_are_stored_for(backend: str, rank: int, transpose: bool) -> None:
    directions = torch.randn(1, 3, 8)
    algebra = torch.zeros(1, 3, 5, dtype=torch.float64)
    arguments = (directions, algebra, torch.tensor([rank]), torch.randn(1, 1, 8), -1.0, transpose)
    if backend == "cuda":
        pytest.skip("stops the device")
    if backend == "triton":
        assert OPS["broyden_matvec"].call(*arguments).isnan().all()
        return
    with pytest.raises(RuntimeError, match="of sample 0 is"):
        OPS["broyden_matvec"].call(*arguments)


def _in_one_buffer(first: Tensor, second: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Copies of both, of which the second begins so many bytes behind the first."""
    buffer = torch.zeros(offset + first.nbytes + second.nbytes, dtype=torch.uint8)
    placed = []
    for begin, tensor in ((0, first), (offset, second)):
        view = buffer[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        placed.append(view.copy_(tensor))
    return placed[0], placed[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [("scratch", "counters"), ("z", "f_z"), ("z", "best_z"), ("record", "f_z")],
)
def test_memory_that_is_shared_and_written_to(backend: str, first: str, second: str) -> None:
    arguments = damped_arguments()
    size = arguments[first].nbytes
    for offset in (0, size - 8):
        shared = dict(zip((first, second), (arguments[first], arguments[second]), strict=True))
        shared[first], shared[second] = _in_one_buffer(*shared.values(), offset)
        with pytest.raises(RuntimeError, match="must not share memory with"):
            damped_step(**shared)
    neighbours = dict(
        zip(
            (first, second),
            _in_one_buffer(arguments[first], arguments[second], size),
            strict=True,
        )
    )
    damped_step(**neighbours)


def test_rows_that_take_turns_in_one_buffer(backend: str) -> None:
    """Two halves of a buffer have their rows side by side, and share no element."""
    s, y = torch.randn(2, 16), torch.randn(2, 16)
    rank = torch.zeros(2, dtype=torch.int64)
    apart = torch.zeros(2, 3, 16), torch.zeros(2, 3, 16)
    both = torch.zeros(2, 2, 3, 16)
    assert low_rank.append_(*apart, rank.clone(), s, y).all()
    assert low_rank.append_(both[:, 0], both[:, 1], rank.clone(), s, y).all()
    assert both[:, 0].equal(apart[0])
    assert both[:, 1].equal(apart[1])
    for shift in (0, 1, 15):
        rows = torch.zeros(2 * 3 * 16 + 16)
        halves = rows[: 2 * 3 * 16].view(2, 3, 16), rows[shift : shift + 2 * 3 * 16].view(2, 3, 16)
        with pytest.raises(RuntimeError, match="must not share memory with"):
            low_rank.append_(*halves, rank.clone(), s, y)
    with pytest.raises(RuntimeError, match="no two of its elements may share memory"):
        low_rank.append_(torch.zeros(1, 3, 16).expand(2, 3, 16), apart[1], rank, s, y)


@pytest.mark.parametrize("name", ["rtol", "atol", "damping", "divergence_factor"])
def test_numbers_that_are_none(backend: str, name: str) -> None:
    with pytest.raises(RuntimeError, match=name):
        damped_step(**{name: float("nan")})


def test_a_freed_storage(backend: str) -> None:
    z = torch.randn(2, 8)
    z.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="z has elements but no memory"):
        damped_step(z=z)


def test_history_memory_of_no_size_or_any(backend: str) -> None:
    for size in (0, -1, -(2**63), 2**63 - 1):
        with pytest.raises(RuntimeError):
            OPS["history_memory"].call(torch.empty(1), size)


def test_a_product_with_the_identity_is_w_itself(backend: str) -> None:
    """Autograd returns it as it was given; the op writes to it."""
    w, cotangent = torch.randn(2, 8), torch.randn(2, 8)
    norms = torch.zeros(2, 2, dtype=torch.float64)
    expected = w.clone()
    damped.neumann_step_(w.clone(), cotangent, expected, norms, damping=0.5)
    damped.neumann_step_(w, cotangent, w, norms, damping=0.5)
    assert w.equal(expected)
