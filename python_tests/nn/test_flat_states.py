"""Inner products per sample: right, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from deq_kernels.nn.flat_states import TILE, row_dot

SIZES = (0, 1, 7, TILE, TILE + 1, 9 * TILE + 5, 40_000)


@pytest.mark.parametrize("dim", SIZES)
def test_equals_a_plain_sum(dim: int) -> None:
    x, y = torch.randn(3, dim), torch.randn(3, dim)
    expected = (x.double() * y.double()).sum(dim=1)
    torch.testing.assert_close(row_dot(x, y), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim", SIZES)
def test_bits_depend_on_the_sample_alone(
    dim: int, dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    x = torch.randn(9, dim, dtype=dtype)
    whole = row_dot(x, x, dtype)
    for threads in (1, 2):
        set_threads(threads)
        for rows in (slice(0, 1), slice(4, 5), slice(2, 9)):
            assert torch.equal(row_dot(x[rows], x[rows], dtype), whole[rows])


def test_half_precision_is_added_in_a_wider_dtype() -> None:
    x = torch.full((1, 10_000), 300.0, dtype=torch.float16)
    assert row_dot(x, x).item() == 9e8


def test_gradient() -> None:
    x = torch.randn(2, TILE + 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(row_dot(x, x).sum(), x)
    torch.testing.assert_close(grad, 2 * x)
