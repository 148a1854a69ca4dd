"""Structured cells judged by rows: a sample converges when each of its rows does for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.termination import Counter, Norm, Status
from python_tests.ops.conftest import COMPILED, FUSED, running
from python_tests.ops.test_cells import (
    Sparse,
    iterate,
    status_of,
    steps_of,
    weight_of,
)

BY_ROWS: dict[str, Any] = {"norm": NormKind.ROWS, "rtol": 1e-4, "atol": 0.0}


@pytest.fixture(params=(*COMPILED, "reference"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param) as name:
        yield name


def path(nodes: int, gain: float = 0.5, dtype: torch.dtype = torch.float64) -> Sparse:
    """A chain: what the first node has gets to each of the others, `gain` times at every step."""
    return Sparse.of(
        [(nodes, [(row, row - 1, gain) for row in range(1, nodes)])],
        dtype,
    )


def at_the_first(rows: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """b of a chain, zero but for the first node."""
    bias = torch.zeros(rows, dim, dtype=dtype)
    bias[0] = 1.0
    return bias


def row_residuals(s: Sparse, weight: Tensor, bias: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """‖f(z) − z‖ and ‖f(z)‖ of each row, in dense float64, for relu."""
    f = torch.relu(s.dense @ z.double() @ weight.double().T + bias.double())
    return (f - z.double()).norm(dim=1), f.norm(dim=1)


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("dim", [1, 16, 33, 64])
def test_every_row_meets_the_tolerance(backend: str, dim: int, accelerate: bool) -> None:
    """And with the norm of the whole sample small rows do not, whose trace is another, too."""
    s = Sparse.random([40, 1, 25], torch.float64)
    weight = weight_of(dim, torch.float64)
    bias = torch.rand(66, dim, dtype=torch.float64)
    bias *= torch.logspace(0, -12, 66, dtype=torch.float64)[:, None]
    options = {**BY_ROWS, **s.arguments, "activation": Activation.RELU, "accelerate": accelerate}
    z, tables = iterate(weight, bias, **options)
    residual, size = row_residuals(s, weight, bias, z)
    assert status_of(tables) == [Status.CONVERGED] * 3
    # What dense algebra rounds otherwise is no residual.
    assert (residual <= 1.0001e-4 * size + 1e-20).all()
    largest = torch.stack([part.max() for part in residual.split(s.sizes)])
    torch.testing.assert_close(tables.norms[:, Norm.BEST], largest, rtol=1e-6, atol=1e-16)
    whole, of_whole = iterate(weight, bias, **{**options, "norm": NormKind.TWO})
    residual, size = row_residuals(s, weight, bias, whole)
    assert (residual > 1.01e-4 * size).any()
    assert all(
        one >= other for one, other in zip(steps_of(tables), steps_of(of_whole), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("accelerate", [False, True])
def test_what_travels_further_than_a_stall_lasts_arrives(
    backend: str, accelerate: bool, dtype: torch.dtype
) -> None:
    """The largest residual stands still at the rounding error meanwhile, or at zero."""
    s, weight = path(90, 0.6, dtype), torch.eye(3, dtype=dtype)
    bias = at_the_first(90, 3, dtype)
    options = {"activation": Activation.RELU, "stall_steps": 5, "accelerate": accelerate}
    z, tables = iterate(weight, bias, **BY_ROWS, **s.arguments, **options)
    assert status_of(tables) == [Status.CONVERGED]
    expected = 0.6 ** torch.arange(90, dtype=torch.float64)
    torch.testing.assert_close(z[:, 0].double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("dtype", "nodes", "gain"), [(torch.float32, 60, 1e-1), (torch.float64, 60, 1e-7)]
)
def test_rows_that_vanish_do_not_keep_a_sample_from_converging(
    backend: str, dtype: torch.dtype, nodes: int, gain: float
) -> None:
    """Those that underflow, and those that are zero from the beginning."""
    s, weight = path(nodes, gain, dtype), torch.eye(2, dtype=dtype)
    bias = at_the_first(nodes, 2, dtype)
    for activation in (Activation.RELU, Activation.TANH):
        for start in (None, 1.0 + torch.rand(nodes, 2, dtype=dtype)):
            options = {**BY_ROWS, "activation": activation, "z0": start}
            z, tables = iterate(weight, bias, **options, **s.arguments)
            assert status_of(tables) == [Status.CONVERGED]
            assert (z[:9] > 0).all()
    nothing = torch.zeros_like(bias)
    z, tables = iterate(weight, nothing, **BY_ROWS, activation=Activation.RELU, **s.arguments)
    assert (status_of(tables), steps_of(tables)) == ([Status.CONVERGED], [1])


def test_a_sample_with_one_row_that_does_not_settle_has_not_converged(backend: str) -> None:
    """It moves to and fro between 0 and 1e-9, beside rows that are solved."""
    s = Sparse.of([(2, [(0, 0, 0.5), (1, 1, -1.0)])])
    bias = torch.tensor([[1.0], [1e-9]], dtype=torch.float64)
    options = {**s.arguments, "activation": Activation.IDENTITY, "stall_steps": 8}
    one = torch.ones(1, 1, dtype=torch.float64)
    _, tables = iterate(one, bias, **BY_ROWS, **options)
    assert status_of(tables) == [Status.STALLED]
    _, tables = iterate(one, bias, **{**BY_ROWS, "norm": NormKind.TWO}, **options)
    assert status_of(tables) == [Status.CONVERGED]


def test_the_last_of_fixed_steps_is_judged_by_rows(backend: str) -> None:
    s, weight = path(9), torch.eye(2, dtype=torch.float64)
    bias = at_the_first(9, 2)
    options = {**BY_ROWS, **s.arguments, "activation": Activation.RELU, "fixed_steps": True}
    for steps, status in ((9, Status.MAX_STEPS), (10, Status.CONVERGED)):
        _, tables = iterate(weight, bias, max_steps=steps, **options)
        assert status_of(tables) == [status]
        assert tables.counters[0, Counter.PROGRESS_STEP] == 0


def test_a_row_that_is_no_number_diverges(backend: str) -> None:
    s, weight = path(5), torch.eye(2, dtype=torch.float64)
    bias = at_the_first(5, 2)
    bias[3, 1] = torch.nan
    _, tables = iterate(weight, bias, **BY_ROWS, **s.arguments, activation=Activation.TANH)
    assert status_of(tables) == [Status.DIVERGED]


@pytest.mark.parametrize("name", [*FUSED, "reference"])
@pytest.mark.parametrize("accelerate", [False, True])
def test_where_rows_are_samples_it_is_their_2_norm(name: str, accelerate: bool) -> None:
    with running(name):
        weight, bias = weight_of(20, torch.float32), torch.randn(6, 20)
        options = {"rtol": 1e-4, "atol": 0.0, "accelerate": accelerate}
        z, tables = iterate(weight, bias, norm=NormKind.ROWS, **options)
        expected, of_two = iterate(weight, bias, norm=NormKind.TWO, **options)
    assert torch.equal(z, expected)
    assert torch.equal(tables.counters, of_two.counters)
    torch.testing.assert_close(tables.record, of_two.record, rtol=0, atol=0, equal_nan=True)
