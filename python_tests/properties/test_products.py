"""Both forms of the inverse on rows of any number, shape, stride, dtype and scale."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deq_kernels.ops import broyden, low_rank
from python_tests.properties.cases import DIMS

PAIRS = (
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
)


def rows_apart(values: Tensor, gap: int) -> Tensor:
    """The same rows [B, m, d], dense each, `gap` elements apart."""
    batch, count, dim = values.shape
    holder = values.new_full((batch, count, dim + gap), torch.nan)
    holder[..., :dim] = values
    return holder[..., :dim]


@st.composite
def row_sets(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Two sets of rows [B, m, d], some of them zero or equal; ranks; x [B, c, d]; log₂ of x."""
    state, history = draw(st.sampled_from(PAIRS))
    batch, count, dim = draw(st.integers(0, 3)), draw(st.integers(1, 9)), draw(DIMS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    u, v = (
        torch.randn(batch, count, dim, generator=generator).to(torch.float64) / dim**0.5
        for _ in range(2)
    )
    for rows in (u, v):
        for row in range(count):
            kind = draw(st.sampled_from(("its own", "its own", "its own", "zero", "the first")))
            if kind == "zero":
                rows[:, row] = 0.0
            elif kind == "the first":
                rows[:, row] = rows[:, 0]
    ranks = torch.tensor([draw(st.integers(0, count)) for _ in range(batch)], dtype=torch.int64)
    exponent = draw(st.sampled_from((0, 0, 90, -90))) if state != torch.float16 else 0
    x = torch.randn(batch, draw(st.integers(1, 3)), dim, generator=generator).double()
    gap = draw(st.sampled_from((0, 1, 8)))
    u, v = (rows_apart(rows.to(history), gap) for rows in (u, v))
    return u, v, ranks, (x * 2.0**exponent).to(state), exponent


def close(found: Tensor, exact: Tensor, bound: Tensor, dtype: torch.dtype) -> None:
    """Each row of `found` [B, c, d] within rounding of numbers as large as `bound` [B, c]."""
    assert found.dtype == dtype
    rounding = 64 * torch.finfo(dtype).eps
    distance = (found.double() - exact).norm(dim=2)
    assert (distance <= rounding * bound).all()


@given(row_sets(), st.booleans(), st.sampled_from((-1.0, -0.5)))
def test_sum_form(
    case: tuple[Tensor, Tensor, Tensor, Tensor, int], transpose: bool, scale: float
) -> None:
    u, v, ranks, x, _ = case
    if transpose:
        u, v = v, u
    exact, size = scale * x.double(), x.double().norm(dim=2)
    bound = size.clone()
    for sample, rank in enumerate(ranks.tolist()):
        left, right = u[sample, :rank].double(), v[sample, :rank].double()
        exact[sample] += (x[sample].double() @ right.T) @ left
        bound[sample] += size[sample] * (left.norm(dim=1) * right.norm(dim=1)).sum()
    close(low_rank.matvec(u, v, ranks, x, scale=scale), exact, bound, x.dtype)


@given(row_sets(), st.booleans(), st.sampled_from((1.0, 0.75)))
def test_product_form(
    case: tuple[Tensor, Tensor, Tensor, Tensor, int], transpose: bool, step: float
) -> None:
    """Factors along a direction of length zero are those that the solver skips."""
    directions, _, ranks, x, _ = case
    batch, capacity, _ = directions.shape
    ranks = (ranks - 1).clamp(min=0)
    p = directions.double()
    algebra = torch.zeros(batch, capacity, capacity + 2, dtype=torch.float64)
    algebra[..., :capacity] = p @ p.mT
    square = p.square().sum(2)
    algebra[..., capacity] = step
    algebra[..., capacity + 1] = torch.where(square > 0.0, 1.0 / square, 0.0)
    exact, bound = torch.empty_like(x, dtype=torch.float64), x.double().norm(dim=2)
    for sample, rank in enumerate(ranks.tolist()):
        size = p[sample].norm(dim=1)
        for j in range(rank):
            if size[j] > 0.0:
                u = p[sample, j + 1] + (step - 1.0) * p[sample, j]
                bound[sample] *= 1.0 + u.norm() / size[j]
        exact[sample] = _factors_applied(p[sample, : rank + 1], step, x[sample], transpose)
    found = broyden.matvec(directions, algebra, ranks, x, scale=-1.0, transpose=transpose)
    close(found, exact, bound, x.dtype)


def _factors_applied(p: Tensor, step: float, x: Tensor, transpose: bool) -> Tensor:
    """H x or Hᵀ x of each row of x, factor after factor, without those along zero directions."""
    y = x.double() if transpose else -x.double()
    indices = range(len(p) - 1)
    for j in reversed(indices) if transpose else indices:
        if p[j].norm() == 0.0:
            continue
        u = p[j + 1] + (step - 1.0) * p[j]
        left, right = (p[j], u) if transpose else (u, p[j])
        y = y + (y @ right)[:, None] * left / (p[j] @ p[j])
    return -y if transpose else y
