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
    assert not inverse.append_(x, x).any()


def test_rank_beyond_the_rows_is_an_error() -> None:
    u, v, _ = random_factors(2, 2, 4, torch.float32)
    with pytest.raises(RuntimeError, match="rank of sample 1 is 3"):
        low_rank.matvec(u, v, torch.tensor([0, 3]), torch.zeros(2, 1, 4))


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
    s, y = torch.randn(4, 5).double(), torch.randn(4, 5).double()
    factors = (u.detach().clone(), v.detach().clone(), rank)
    torch.library.opcheck(OPS["low_rank_append_"].overload, (*factors, s, y, -1.0))
