"""Rank-sized algebra and stored rows, against torch's own."""

from __future__ import annotations

import pytest
import torch

from deq_kernels.ops import low_rank
from deq_kernels.solvers.machinery.rank_algebra import (
    apply,
    grow_inverse,
    place,
    summed_size,
    tree_sum,
)
from deq_kernels.solvers.machinery.vectors import StoredVectors, dot, norm, write


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 31])
def test_tree_sum_and_apply(size: int) -> None:
    x = torch.randn(3, 4, size, dtype=torch.float64)
    torch.testing.assert_close(tree_sum(x), x.sum(-1))
    right = torch.randn(3, size, dtype=torch.float64)
    torch.testing.assert_close(apply(x, right), torch.einsum("bnm,bm->bn", x, right))


@pytest.mark.parametrize("size", [1, 2, 7, 31, 49, 399])
@pytest.mark.parametrize("known", [0, 1, 2, 3, 12, 31])
def test_zeros_at_the_end_need_not_be_summed(size: int, known: int) -> None:
    known = min(known, size)
    x = torch.randn(50, size, dtype=torch.float64)
    x[:, known:] = 0.0
    short = summed_size(size, known)
    assert known <= short <= max(1, 2 * known)
    assert torch.equal(tree_sum(x[:, :short]), tree_sum(x))


def test_rows_keep_what_they_hold_as_they_grow() -> None:
    rows = StoredVectors(torch.zeros(2, 5), 2, torch.float32)
    x = torch.randn(2, 5)
    everyone = torch.ones(2, dtype=torch.bool)
    rows.put(torch.tensor([0, 1]), x, everyone)
    rows.grow(3)
    rows.put(torch.tensor([4, 4]), -x, everyone)
    assert torch.equal(rows.stored[[0, 1], [0, 1]], x)
    assert torch.equal(rows.stored[:, 4], -x)
    assert rows.capacity == rows.stored.shape[1] == 5


def test_place_leaves_the_other_samples_alone() -> None:
    x = torch.zeros(3, 4, 2)
    placed = place(x, torch.tensor([1, 2, 3]), torch.ones(3, 2), torch.tensor([True, False, True]))
    assert placed.nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [2, 3, 0], [2, 3, 1]]
    assert not x.any()


def test_a_triangle_grown_and_cut_in_a_ring() -> None:
    """Five columns in a ring of three: what is left is the inverse of the newest block."""
    matrix = torch.randn(2, 5, 5, dtype=torch.float64).triu() + 3 * torch.eye(5)
    inverse = torch.zeros(2, 3, 3, dtype=torch.float64)
    everyone = torch.ones(2, dtype=torch.bool)
    for new in range(5):
        slot = new % 3
        inverse[:, slot, :] = 0.0
        inverse[:, :, slot] = 0.0
        column = torch.zeros(2, 3, dtype=torch.float64)
        for old in range(max(0, new - 2), new):
            column[:, old % 3] = matrix[:, old, new]
        index = torch.full((2,), slot)
        inverse = grow_inverse(inverse, index, column, matrix[:, new, new], everyone)
    order = [2 % 3, 3 % 3, 4 % 3]
    block = matrix[:, 2:, 2:]
    torch.testing.assert_close(inverse[:, order][:, :, order], torch.linalg.inv(block))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 5, 4100])
def test_rows(dtype: torch.dtype, dim: int) -> None:
    """Dots and combinations of the first rows of each sample, also with more rows than elements."""
    like = torch.zeros(3, dim, dtype=dtype)
    rows = StoredVectors(like, 4, dtype)
    stored = torch.randn(3, 4, dim, dtype=dtype) / dim**0.5
    everyone = torch.ones(3, dtype=torch.bool)
    for slot in range(3):
        rows.put(torch.full((3,), slot), stored[:, slot], everyone)
    rows.put(torch.zeros(3, dtype=torch.int64), -stored[:, 0], ~everyone)
    count = torch.tensor([0, 2, 3])
    held = torch.arange(4) < count[:, None]
    exact = torch.where(held[:, :, None], stored.double(), 0.0)
    x = torch.randn(3, dim, dtype=dtype)
    dots = torch.einsum("bid,bd->bi", exact, x.double())
    torch.testing.assert_close(rows.dots(count, x), dots)
    c = torch.randn(3, 4, dtype=torch.float64)
    combined = torch.einsum("bi,bid->bd", c, exact) - 0.5 * x.double()
    torch.testing.assert_close(rows.combine(count, c, x, -0.5), combined.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [3, 4100])
def test_projecting_out_twice(dtype: torch.dtype, dim: int) -> None:
    """What is left is orthogonal to the rows, to the rounding of what was there."""
    basis = torch.linalg.qr(torch.randn(4, dim, 3, dtype=torch.float64)).Q.mT
    rows = StoredVectors(torch.zeros(4, dim, dtype=dtype), 3, dtype)
    for slot in range(3):
        rows.put(torch.full((4,), slot), basis[:, slot], torch.ones(4, dtype=torch.bool))
    count = torch.tensor([0, 1, 2, 3])
    x = torch.randn(4, dim, dtype=dtype)
    rest = x.clone()
    dots = low_rank.project_out_(rows.stored, count, rest[:, None])[:, 0]
    assert torch.equal(dots, rows.dots(count, x))
    assert torch.equal(rest[0], x[0])
    unit = torch.finfo(dtype).eps * x.double().norm(dim=1)
    assert (rows.dots(count, rest).abs().amax(dim=1) <= 2 * unit).all()
    known = torch.einsum("bi,bid->bd", dots, rows.stored.double().nan_to_num())
    torch.testing.assert_close((rest + known).to(dtype), x)


def test_dots_and_norms_do_not_overflow() -> None:
    x, y = 1e30 * torch.randn(2, 50), 1e-30 * torch.randn(2, 50)
    for a, b in ((x, x), (x, y), (y, y)):
        exact = (a.double() * b.double()).sum(1)
        torch.testing.assert_close(dot(a, b), exact, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(norm(y), y.double().norm(dim=1), rtol=1e-12, atol=0.0)
    assert dot(torch.zeros(2, 0), torch.zeros(2, 0)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("written", [[True, True], [True, False], [False, False]])
def test_write_leaves_the_other_samples_alone(written: list[bool]) -> None:
    target = torch.zeros(2, 3, dtype=torch.bfloat16)
    write(target, torch.ones(2, 3), torch.tensor(written))
    assert target.float().mean(dim=1).tolist() == [float(w) for w in written]
