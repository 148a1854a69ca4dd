"""Whatever is given for an option is refused by name, or leads to a solve that keeps its word."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deq_kernels as dk
from deq_kernels.ops import Status

SOLVERS = tuple(dk.solvers.SOLVERS.values())
GRADIENTS = tuple(dk.gradients.GRADIENTS.values())
VALUES = st.one_of(
    st.sampled_from((None, True, False, 0, 1, 2, -1, 10**30, "", "armijo", "restart", [], {})),
    st.sampled_from((torch.bfloat16, torch.float32, torch.int8, torch.tensor(1.0), print)),
    st.floats(),
    st.integers(-3, 40),
)
LONGEST = 64
"""A solve of more steps is not tried: it reserves room for every one."""


def f(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * z.roll(0, 1) + 1.0


def must_name(error: Exception, options: dict[str, Any]) -> None:
    """An error about an option says which one it is about."""
    assert any(name in str(error) for name in options)


@st.composite
def options_of(draw: st.DrawFn, kinds: tuple[type, ...]) -> tuple[type, dict[str, Any]]:
    kind = draw(st.sampled_from(kinds))
    names = [field.name for field in fields(kind) if field.init]
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
    return kind, {name: draw(VALUES) for name in chosen}


@given(options_of(SOLVERS))
def test_solver_options(case: tuple[type[dk.Solver], dict[str, Any]]) -> None:
    kind, options = case
    try:
        solver = kind(**options)
    except ValueError as error:
        must_name(error, options)
        return
    if solver.max_steps > LONGEST or solver.compact or solver.synchronized is not False:
        return
    z0 = torch.zeros(2, 5)
    try:
        solution = solver(f, z0)
    except (TypeError, ValueError) as error:
        # What only a state can show, such as its device and dtype.
        must_name(error, options)
        return
    first = (f(z0) - z0).double().norm(dim=1)
    residual = (f(solution.z) - solution.z).double().norm(dim=1)
    assert (solution.status != Status.RUNNING).all()
    assert (solution.steps <= solver.max_steps).all()
    assert (residual <= 1.0001 * first).all()
    torch.testing.assert_close(solution.residual, residual, rtol=1e-5, atol=1e-5)


@given(options_of(GRADIENTS))
def test_gradient_options(case: tuple[type[dk.Gradient], dict[str, Any]]) -> None:
    kind, options = case
    try:
        gradient = kind(**options)
    except (TypeError, ValueError) as error:
        must_name(error, options)
        return
    if any(isinstance(value, int) and value > LONGEST for value in options.values()):
        return
    if any(callable(value) for value in options.values()):
        return
    bias = torch.ones(2, 5, requires_grad=True)
    z = dk.DEQ(lambda z, b: 0.5 * z + b, gradient=gradient)(torch.zeros(2, 5), bias)
    (found,) = torch.autograd.grad(z.sum(), bias)
    assert found.isfinite().all()
    # A damping near zero rounds to none.
    assert (found >= 0).all()


@pytest.mark.parametrize("kind", [*SOLVERS, *GRADIENTS])
def test_unknown_options_are_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="tolerence"):
        kind(tolerence=1e-3)
