"""The op family `low_rank` against dense float64 algebra, on every backend present."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import OPS, low_rank
from python_tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def random_factors(
    batch: int, length: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors u and v with every sample of another rank, unused rows NaN."""
    u, v = (torch.randn(batch, length, dim) / dim**0.5 for _ in range(2))
    rank = torch.arange(batch) % (length + 1)
    unused = torch.arange(length) >= rank[:, None]
    u[unused], v[unused] = torch.nan, torch.nan
    return u.to(dtype), v.to(dtype), rank


def dense(u: Tensor, v: Tensor, rank: int, scale: float) -> Tensor:
    eye = torch.eye(u.shape[-1], dtype=torch.float64)
    return scale * eye + u[:rank].double().T @ v[:rank].double()


@pytest.mark.interpreter(dtype=(torch.float64, torch.bfloat16), dim=(33,))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 16, 33, 129])
def test_products_equal_dense(backend: str, dtype: torch.dtype, dim: int) -> None:
    u, v, rank = random_factors(5, 4, dim, dtype)
    x = torch.randn(5, 3, dim).to(dtype)
    forward = low_rank.matvec(u, v, rank, x, scale=-0.5)
    backward = low_rank.rmatvec(u, v, rank, x, scale=-0.5)
    for sample in range(5):
        matrix = dense(u[sample], v[sample], int(rank[sample]), -0.5)
        right = x[sample].double().T
        assert_close(forward[sample], (matrix @ right).T, dtype)
        assert_close(backward[sample], (matrix.T @ right).T, dtype)


def test_products_across_tiles(backend: str) -> None:
    u, v, rank = random_factors(2, 3, 5003, torch.float32)
    rank.fill_(0)
    rank[1] = 1
    x = torch.randn(2, 1, 5003)
    product = low_rank.matvec(u, v, rank, x)
    expected = -x.double()
    expected[1, 0] += u[1, 0].double() * (v[1, 0].double() @ x[1, 0].double())
    assert_close(product, expected, torch.float32)


def test_strided_factors(backend: str) -> None:
    u, v, rank = random_factors(4, 3, 20, torch.float64)
    x = torch.randn(4, 2, 20, dtype=torch.float64)
    padded_u = torch.full((4, 3, 32), torch.nan, dtype=torch.float64)
    padded_u[:, :, :20] = u
    strided_v = v.transpose(0, 1).contiguous().transpose(0, 1)
    product = low_rank.matvec(padded_u[:, :, :20], strided_v, rank, x)
    assert torch.equal(product, low_rank.matvec(u, v, rank, x))


@pytest.mark.interpreter(dtype=(torch.float32,), dim=(37, 2100))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim", [5, 37, 2100])
def test_append_satisfies_the_secant_equation(backend: str, dtype: torch.dtype, dim: int) -> None:
    inverse = dk.LowRankInverse.empty(3, 4, dim, dtype=dtype, gamma=0.7)
    matrix = torch.eye(dim, dtype=torch.float64) if dim < 100 else None
    dense_inverses = [-0.7 * matrix for _ in range(3)] if matrix is not None else None
    for _ in range(4):
        s = torch.randn(3, dim).to(dtype)
        y = (0.3 * torch.randn(3, dim) - s.float()).to(dtype)
        assert inverse.append_(s, y).all()
        assert_close(inverse.matvec(y), s, dtype)
        if dense_inverses is not None:
            for sample, h in enumerate(dense_inverses):
                s_i, y_i = s[sample].double(), y[sample].double()
                update = torch.outer(s_i - h @ y_i, s_i @ h) / (s_i @ h @ y_i)
                dense_inverses[sample] = h + update
    if dense_inverses is not None:
        x = torch.randn(3, dim).to(dtype)
        expected = torch.stack([h @ x[i].double() for i, h in enumerate(dense_inverses)])
        assert_close(inverse.matvec(x), expected, dtype)
        expected = torch.stack([h.T @ x[i].double() for i, h in enumerate(dense_inverses)])
        assert_close(inverse.rmatvec(x), expected, dtype)


def test_append_refuses_what_would_break_the_inverse(backend: str) -> None:
    """A zero step, a change orthogonal to it, a NaN, and a full history, sample by sample."""
    inverse = dk.LowRankInverse.empty(5, 1, 4, dtype=torch.float64)
    s = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).repeat(5, 1)
    y = -s.clone()
    s[0] = 0.0
    y[1] = torch.tensor([2.0, -1.0, 0.0, 0.0])
    y[2, 0] = torch.nan
    assert inverse.append_(s, y).tolist() == [False, False, False, True, True]
    assert inverse.rank.tolist() == [0, 0, 0, 1, 1]
    before = inverse.matvec(s[3:4].repeat(5, 1))
    assert not inverse.append_(s, y)[3:].any()
    assert torch.equal(inverse.matvec(s[3:4].repeat(5, 1))[3:], before[3:])


@pytest.mark.interpreter(dtype=(torch.float64, torch.bfloat16), dim=(33,))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 16, 33, 129])
def test_dots_and_combinations_equal_dense(backend: str, dtype: torch.dtype, dim: int) -> None:
    rows, _, count = random_factors(5, 4, dim, dtype)
    x = torch.randn(5, 3, dim).to(dtype)
    dots = low_rank.dots(rows, count, x)
    c = torch.randn(5, 3, 4, dtype=torch.float64)
    combined = low_rank.combine(rows, count, c, x, scale=-0.5)
    for sample in range(5):
        known = int(count[sample])
        stored, right = rows[sample, :known].double(), x[sample].double()
        assert_close(dots[sample, :, :known], right @ stored.T, torch.float64)
        assert not dots[sample, :, known:].any()
        expected = c[sample, :, :known] @ stored - 0.5 * right
        assert_close(combined[sample], expected, dtype)


@pytest.mark.interpreter(dim=(4101,))
@pytest.mark.parametrize("dim", [4095, 4101, 9001])
def test_halves_across_tiles(backend: str, dim: int) -> None:
    rows, _, count = random_factors(3, 7, dim, torch.float32)
    count[0], rows[0] = 7, torch.randn(7, dim)
    x = torch.randn(3, 1, dim)
    dots = low_rank.dots(rows, count, x)
    combined = low_rank.combine(rows, count, dots, x, scale=1.0)
    for sample in range(3):
        stored = rows[sample, : int(count[sample])].double()
        right = x[sample, 0].double()
        assert_close(dots[sample, 0, : len(stored)], stored @ right, torch.float64)
        assert_close(combined[sample, 0], right + stored.T @ (stored @ right), torch.float32)


@pytest.mark.interpreter(dtype=(torch.float64, torch.bfloat16), dim=(33,))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [4, 33, 9001])
def test_projecting_out_twice(backend: str, dtype: torch.dtype, dim: int) -> None:
    """What is left of x is orthogonal to the rows, to the rounding of x, though x is close to them.

    A single projection leaves what the rows lack in orthogonality, which is made large here.
    """
    rows = torch.linalg.qr(torch.randn(5, dim, 4, dtype=torch.float64)).Q.mT
    rows = (rows + 1e-2 * torch.randn(5, 4, dim, dtype=torch.float64) / dim**0.5).to(dtype)
    count = torch.arange(5)
    x = (rows.double().sum(1) + 0.1 * torch.randn(5, dim, dtype=torch.float64)).to(dtype)
    rest = torch.stack((x, 2 * x), dim=1)
    before = rest.clone()
    dots = low_rank.project_out_(rows, count, rest)
    assert torch.equal(dots, low_rank.dots(rows, count, before))
    assert torch.equal(rest[0], before[0])
    for sample in range(5):
        stored = rows[sample, : int(count[sample])].double()
        expected = before[sample].double()
        for _ in range(2):
            expected = expected - (expected @ stored.T) @ stored
        assert_close(rest[sample], expected, dtype)


def test_halves_neither_overflow_nor_lose_small_numbers(backend: str) -> None:
    x = torch.full((2, 1, 40), 1e30)
    x[1] = 1e-30
    dots = low_rank.dots(x, torch.ones(2, dtype=torch.int64), x)
    exact = (x.double() ** 2).sum(-1, keepdim=True)
    torch.testing.assert_close(dots, exact, rtol=1e-12, atol=0.0)
    # float32 arithmetic would lose the ones.
    rows = torch.stack((torch.ones(40), torch.ones(40), -torch.ones(40)))[None]
    c = torch.tensor([[[1e10, 1.0, 1e10]]], dtype=torch.float64)
    combined = low_rank.combine(rows, torch.tensor([3]), c, rows[:, 1:2], scale=1.0)
    assert combined.tolist() == torch.full((1, 1, 40), 2.0).tolist()


def test_a_scale_of_zero_does_not_read_x(backend: str) -> None:
    rows, _, count = random_factors(3, 2, 9, torch.float32)
    c = torch.randn(3, 1, 2, dtype=torch.float64)
    x = torch.full((3, 1, 9), torch.nan)
    expected = low_rank.combine(rows, count, c, torch.zeros_like(x), scale=1.0)
    assert torch.equal(low_rank.combine(rows, count, c, x, scale=0.0), expected)


def test_halves_of_strided_rows(backend: str) -> None:
    rows, _, count = random_factors(4, 3, 20, torch.float64)
    x = torch.randn(4, 2, 20, dtype=torch.float64)
    c = torch.randn(4, 2, 3, dtype=torch.float64)
    padded = torch.full((4, 4, 32), torch.nan, dtype=torch.float64)
    padded[:, :3, :20] = rows
    strided = padded[:, :3, :20]
    assert torch.equal(low_rank.dots(strided, count, x), low_rank.dots(rows, count, x))
    combined = low_rank.combine(strided, count, c, x, scale=2.0)
    assert torch.equal(combined, low_rank.combine(rows, count, c, x, scale=2.0))


@pytest.mark.interpreter(run=False)
def test_gradients_of_the_halves(backend: str) -> None:
    rows, _, count = random_factors(4, 3, 5, torch.float64)
    rows = rows.nan_to_num(1.0).requires_grad_()
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    c = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    inputs = rows, x
    assert torch.autograd.gradcheck(lambda r, x: low_rank.dots(r, count, x), inputs)
    assert torch.autograd.gradgradcheck(lambda r, x: low_rank.dots(r, count, x), inputs)

    def combined(r: Tensor, c: Tensor, x: Tensor) -> Tensor:
        return low_rank.combine(r, count, c, x, scale=-0.5)

    assert torch.autograd.gradcheck(combined, (rows, c, x))
    assert torch.autograd.gradgradcheck(combined, (rows, c, x))


@pytest.mark.interpreter(run=False)
def test_gradients(backend: str) -> None:
    u, v, rank = random_factors(4, 3, 5, torch.float64)
    u, v = u.nan_to_num(1.0).requires_grad_(), v.nan_to_num(1.0).requires_grad_()
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *a: low_rank.matvec(a[0], a[1], rank, a[2], scale=-0.5), (u, v, x)
    )
    assert torch.autograd.gradgradcheck(
        lambda *a: low_rank.rmatvec(a[0], a[1], rank, a[2], scale=-0.5), (u, v, x)
    )


@pytest.mark.parametrize(("batch", "dim"), [(0, 4), (3, 0)])
def test_empty_sizes(backend: str, batch: int, dim: int) -> None:
    inverse = dk.LowRankInverse.empty(batch, 2, dim)
    x = torch.zeros(batch, dim)
    assert inverse.matvec(x).shape == x.shape
    dots = low_rank.dots(inverse.u, inverse.rank + 2, x[:, None])
    assert torch.equal(dots, torch.zeros(batch, 1, 2, dtype=torch.float64))
    combined = low_rank.combine(inverse.u, inverse.rank, dots, x[:, None], scale=1.0)
    assert combined.shape == (batch, 1, dim)
    assert torch.equal(low_rank.project_out_(inverse.u, inverse.rank + 2, x[:, None]), dots)
    assert not inverse.append_(x, x).any()


def test_rank_beyond_the_rows_is_an_error() -> None:
    u, v, _ = random_factors(2, 2, 4, torch.float32)
    with pytest.raises(RuntimeError, match="rank of sample 1 is 3"):
        low_rank.matvec(u, v, torch.tensor([0, 3]), torch.zeros(2, 1, 4))
    with pytest.raises(RuntimeError, match="count of sample 1 is 3, but 2 rows are stored"):
        low_rank.dots(u, torch.tensor([0, 3]), torch.zeros(2, 1, 4))
    c = torch.zeros(2, 1, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="count of sample 0 is -1"):
        low_rank.combine(u, torch.tensor([-1, 2]), c, torch.zeros(2, 1, 4), scale=1.0)


def test_halves_name_their_arguments(fused_backend: str) -> None:
    rows, _, count = random_factors(2, 2, 4, torch.float32)
    x = torch.zeros(2, 1, 4)
    with pytest.raises(RuntimeError, match="rows must have size 4 in dimension 2, got 3"):
        low_rank.dots(rows[:, :, :3], count, x)
    with pytest.raises(RuntimeError, match="count must have dtype"):
        low_rank.dots(rows, count.int(), x)
    with pytest.raises(RuntimeError, match="coefficients must have dtype"):
        low_rank.combine(rows, count, torch.zeros(2, 1, 2), x, scale=1.0)


def test_vectors_of_another_shape_or_dtype_are_named() -> None:
    inverse = dk.LowRankInverse.empty(2, 3, 5)
    with pytest.raises(ValueError, match=r"takes x of shape \[2, 5\]"):
        inverse.append_(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"state's dtype torch.float32; got torch.float64"):
        inverse.matvec(torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.interpreter(run=False)
def test_opcheck(fused_backend: str) -> None:
    u, v, rank = random_factors(4, 3, 5, torch.float64)
    u, v = u.nan_to_num(0.0).requires_grad_(), v.nan_to_num(0.0).requires_grad_()
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(OPS["low_rank_matvec"].overload, (u, v, rank, x, -1.0))
    torch.library.opcheck(OPS["low_rank_dots"].overload, (u, rank, x))
    c = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(OPS["low_rank_combine"].overload, (u, rank, c, x, -1.0))
    projected = (u.detach(), rank, x.detach().clone())
    torch.library.opcheck(OPS["low_rank_project_out_"].overload, projected)
    s, y = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    factors = (u.detach().clone(), v.detach().clone(), rank)
    torch.library.opcheck(OPS["low_rank_append_"].overload, (*factors, s, y, -1.0))
