"""rtol is never below what the working precision shows, and the solution says what was used."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from python_tests.cells.solves import solve_dense

UNIT = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}
UNIT |= {dtype: torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16)}
SOLVERS = {
    "broyden": dk.Broyden,
    "anderson": dk.Anderson,
    "fixed_point": dk.FixedPoint,
    "adjoint_broyden": dk.AdjointBroyden,
    "gmres": dk.GMRES,
    "lbfgs": dk.LBFGS,
}
LOW = [torch.float16, torch.bfloat16]


def halved(z: Tensor) -> Tensor:
    return 0.5 * z + 1.0


@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_the_dtype_of_the_state(make: type[dk.Solver], dtype: torch.dtype) -> None:
    z0 = torch.zeros(2, 3, dtype=dtype)
    assert make(rtol=0.1)(halved, z0).rtol == 0.1
    solution = make(rtol=1e-20, max_steps=80)(halved, z0)
    assert solution.rtol == UNIT[dtype]
    assert solution.converged.all()
    exact = make(rtol=0.0, atol=1e-3)(halved, z0)
    assert (exact.rtol, exact.atol) == (0.0, 1e-3)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    linear = nn.Linear(8, 8)
    nn.init.orthogonal_(linear.weight, 0.9)
    x = torch.randn(4, 8)
    solver, z0 = dk.Broyden(rtol=1e-6), torch.zeros(4, 8)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(linear(z) + x)

    with torch.autocast("cpu", dtype):
        solution = solver(f, z0)
        assert solution.rtol == UNIT[dtype]
        assert solution.converged.all()
        assert solver(lambda z: 0.5 * z, z0.double()).rtol == 1e-6  # which autocast leaves alone
        with torch.autocast("cpu", enabled=False):
            assert solver(f, z0).rtol == 1e-6
    assert solver(f, z0).rtol == 1e-6


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("gradient", ["implicit", "adaptive"])
def test_the_adjoint_has_the_precision_that_f_was_recorded_in(
    dtype: torch.dtype, gradient: str
) -> None:
    """The backward pass is outside of autocast, and as short as the precision lets it be."""
    seen: list[dk.Solution] = []
    linear = nn.Linear(32, 32)
    nn.init.orthogonal_(linear.weight, 0.9)
    made: dk.Gradient = dk.Implicit(on_solve=seen.append)
    if gradient == "adaptive":
        made = dk.Adaptive(tolerance=1e-5, on_solve=seen.append)
    layer = dk.DEQ(lambda z, x: torch.tanh(linear(z) + x), gradient=made)
    for context in (torch.autocast("cpu", dtype), nullcontext()):
        with context:
            z = layer(torch.zeros(4, 32), torch.randn(4, 32))
        (z * torch.randn(4, 32)).sum().backward()
    cast, plain = seen
    assert (cast.rtol, plain.rtol) == (UNIT[dtype], 1e-5)
    assert cast.converged.all()
    assert cast.steps.max() < plain.steps.max()


def test_second_derivatives_too() -> None:
    seen: list[dk.Solution] = []
    weight = (0.5 * torch.eye(4)).requires_grad_()
    layer = dk.DEQ(
        lambda z, x: torch.tanh(z @ weight + x), gradient=dk.Implicit(on_solve=seen.append)
    )
    x = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(torch.zeros(2, 4), x)
    (g,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert len(seen) >= 2
    assert {solution.rtol for solution in seen} == {UNIT[torch.bfloat16]}


def test_structured_cells() -> None:
    seen: list[dk.Solution] = []
    options = {"activation": "tanh", "on_solve": seen.append}
    weight = 0.5 * torch.eye(3)
    for dtype, rtol in ((torch.bfloat16, 1e-5), (torch.float32, 1e-5), (torch.float32, 0.0)):
        solve_dense(torch.ones(2, 3, dtype=dtype), weight.to(dtype), rtol=rtol, **options)
    assert [solution.rtol for solution in seen] == [UNIT[torch.bfloat16], 1e-5, 0.0]
