"""Bitwise: one sample's answer depends neither on its neighbours nor on the number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import low_rank

DIMS = (7, 4096, 9001)


def elementwise_map(dim: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A nonlinear map that is itself exact about batches: nothing but elementwise functions."""
    gain = torch.linspace(-0.9, 0.95, dim).to(dtype)
    shift = torch.linspace(0.1, 1.0, dim).to(dtype)
    return lambda z: (gain * z + shift) / (1 + 0.1 * z * z)


def solvers(dtype: torch.dtype, max_steps: int = 9) -> list[dk.Solver]:
    history = [None] if dtype == torch.float64 else [None, torch.bfloat16]
    broyden = [
        dk.Broyden(max_steps=max_steps, rtol=1e-5, history_length=4, damping=0.9, history_dtype=h)
        for h in history
    ]
    optional = dk.Broyden(
        max_steps=max_steps,
        rtol=1e-5,
        history_length=2,
        gamma="auto",
        line_search="derivative_free",
        when_full="drop_oldest",
    )
    return [*broyden, optional, dk.FixedPoint(max_steps=max_steps, rtol=1e-5, damping=0.9)]


def results(solver: dk.Solver, f: Callable[[Tensor], Tensor], z0: Tensor) -> list[Tensor]:
    solution = solver(f, z0)
    assert isinstance(solution.z, Tensor)
    out = [solution.z, solution.trace.nan_to_num(-1.0), solution.steps, solution.status]
    if solution.inverse_jacobian is not None:
        out += [solution.inverse_jacobian.matvec(z0 + 1), solution.inverse_jacobian.rmatvec(z0 + 1)]
    return out


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_threads_change_no_bit(
    set_threads: Callable[[int], None], dtype: torch.dtype, dim: int
) -> None:
    f = elementwise_map(dim, dtype)
    z0 = torch.randn(5, dim).to(dtype)
    for solver in solvers(dtype):
        set_threads(1)
        expected = results(solver, f, z0)
        for threads in (2, 3, 5):
            set_threads(threads)
            for now, before in zip(results(solver, f, z0), expected, strict=True):
                assert torch.equal(now, before)


@pytest.mark.interpreter(dtype=(torch.float32,), dim=(9001,))
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_neighbours_change_no_bit(
    fused_backend: str,
    interpreted: bool,
    set_threads: Callable[[int], None],
    dtype: torch.dtype,
    dim: int,
) -> None:
    """Alone, among others, next to a solved sample and next to one that turns NaN."""
    set_threads(2)
    f = elementwise_map(dim, dtype)
    z0 = torch.randn(6, dim).to(dtype)
    z0[3] = torch.nan
    solved = z0[4]
    for _ in range(300):
        solved = f(solved)
    z0[4] = solved
    for solver in solvers(dtype, max_steps=4)[:1] if interpreted else solvers(dtype):
        together = results(solver, f, z0)
        assert together[3][3] == dk.Status.DIVERGED
        for sample in (1,) if interpreted else (0, 1, 2, 5):
            alone = results(solver, f, z0[sample : sample + 1])
            for one, many in zip(alone, together, strict=True):
                assert torch.equal(one[0], many[sample])


def test_low_rank_append_is_independent_of_neighbours(
    fused_backend: str, set_threads: Callable[[int], None]
) -> None:
    set_threads(2)
    batch, dim = 4, 5001
    s, y, x = (torch.randn(batch, dim) for _ in range(3))
    y = 0.1 * y - s

    def grow(rows: slice) -> Tensor:
        inverse = dk.LowRankInverse.empty(len(s[rows]), 3, dim)
        for shift in (0.0, 0.5, 1.0):
            low_rank.append_(inverse.u, inverse.v, inverse.rank, s[rows] + shift, y[rows])
        return inverse.rmatvec(x[rows])

    together = grow(slice(None))
    for sample in range(batch):
        assert torch.equal(grow(slice(sample, sample + 1))[0], together[sample])


@pytest.mark.interpreter(dtype=(torch.float32,), dim=(9001,))
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_halves_are_independent_of_neighbours_and_threads(
    fused_backend: str,
    interpreted: bool,
    set_threads: Callable[[int], None],
    dtype: torch.dtype,
    dim: int,
) -> None:
    columns = 1 if interpreted else 2
    rows = (torch.randn(5, 5, dim) / dim**0.5).to(dtype)
    x = torch.randn(5, columns, dim).to(dtype)
    c = torch.randn(5, columns, 5, dtype=torch.float64)
    count = torch.tensor([5, 0, 3, 4, 1])
    x[3] = torch.nan

    def halves(index: slice) -> list[Tensor]:
        own, known, right, weights = (t[index].contiguous() for t in (rows, count, x, c))
        combined = low_rank.combine(own, known, weights, right, scale=0.3)
        rest = right.clone()
        return [
            combined,
            low_rank.dots(own, known, right),
            rest,
            low_rank.project_out_(own, known, rest),
        ]

    set_threads(1)
    together = halves(slice(None))
    for threads in (2,) if interpreted else (1, 2, 3):
        set_threads(threads)
        for sample in (2,) if interpreted else (0, 1, 2, 4):
            for alone, among in zip(halves(slice(sample, sample + 1)), together, strict=True):
                assert torch.equal(alone[0], among[sample])
        for again, before in zip(halves(slice(None)), together, strict=True):
            assert torch.equal(again.nan_to_num(), before.nan_to_num())
