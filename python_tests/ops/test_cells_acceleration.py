"""Accelerated steps of structured cells: the same fixed points in fewer evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import deq_kernels as dk
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.termination import Norm, Status
from python_tests.crop_oracle import crop_residuals
from python_tests.ops.conftest import FUSED, running
from python_tests.ops.test_cells import (
    DIMS,
    DTYPES,
    GRAPHS,
    Sparse,
    iterate,
    status_of,
    steps_of,
    weight_of,
)


@pytest.fixture(params=("native", "reference"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with dk.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("dim", DIMS)
def test_dense_linear_samples_reach_the_solution_of_dense_algebra(backend: str, dim: int) -> None:
    weight, bias = weight_of(dim, torch.float64), torch.randn(7, dim, dtype=torch.float64)
    z, tables = iterate(weight, bias, activation=Activation.IDENTITY, accelerate=True)
    assert status_of(tables) == [Status.CONVERGED] * 7
    identity = torch.eye(dim, dtype=torch.float64)
    assert_close(z, torch.linalg.solve(identity - weight, bias.T).T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("norm", NormKind)
@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("activation", Activation)
def test_graphs_reach_the_fixed_point_of_the_damped_iteration(
    backend: str, activation: Activation, damping: float, norm: NormKind
) -> None:
    sparse = Sparse.of(GRAPHS)
    bias = torch.randn(sum(sparse.sizes), 5, dtype=torch.float64)
    scale = torch.rand(bias.shape, dtype=torch.float64)
    weight = weight_of(5, torch.float64, bound=0.7)
    options = {
        **sparse.arguments,
        "scale": scale,
        "activation": activation,
        "damping": damping,
        "norm": norm,
        "max_steps": 400,
    }
    plain, _ = iterate(weight, bias, **options)
    fast, tables = iterate(weight, bias, accelerate=True, **options)
    assert set(status_of(tables)) == {Status.CONVERGED}
    assert_close(fast, plain, rtol=0, atol=2e-9)


@pytest.mark.parametrize("backend_of_rows", [*FUSED, "reference"])
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_rows_follow_published_conjugate_residuals(backend_of_rows: str, damping: float) -> None:
    options = {"activation": Activation.TANH, "damping": damping, "max_steps": 14, "atol": 0.0}
    with running(backend_of_rows):
        weight, bias = weight_of(20, torch.float64), torch.randn(3, 20, dtype=torch.float64)
        _, tables = iterate(weight, bias, accelerate=True, **options)
    trace, weight = tables.trace.cpu(), weight.cpu()
    assert (trace.diff() < 0).all(), "no step may be taken back"
    for b, own in zip(bias.cpu(), trace, strict=True):
        expected = crop_residuals(
            lambda z, b=b: torch.tanh(z @ weight.T + b),
            torch.zeros(20, dtype=torch.float64),
            damping=damping,
            steps=14,
        )
        assert_close(own, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_graphs_follow_published_conjugate_residuals(backend: str, damping: float) -> None:
    sparse = Sparse.random([9, 30, 14], torch.float64)
    weight, bias = weight_of(5, torch.float64), torch.randn(53, 5, dtype=torch.float64)
    options = {"activation": Activation.SOFTPLUS, "damping": damping, "max_steps": 11, "atol": 0.0}
    _, tables = iterate(weight, bias, accelerate=True, **sparse.arguments, **options)
    assert (tables.trace.diff() < 0).all(), "no step may be taken back"
    for graph, (begin, end) in enumerate(pairwise(sparse.sample_ptr.tolist())):
        rows = slice(begin, end)
        expected = crop_residuals(
            lambda z, rows=rows: torch.nn.functional.softplus(
                sparse.dense[rows, rows] @ z @ weight.T + bias[rows]
            ),
            torch.zeros(end - begin, 5, dtype=torch.float64),
            damping=damping,
            steps=11,
        )
        expected_trace = torch.tensor(expected, dtype=torch.float64)
        assert_close(tables.trace[graph], expected_trace, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("activation", [Activation.TANH, Activation.SOFTPLUS, Activation.GELU])
@pytest.mark.parametrize("dim", [1, 2])
def test_curved_cells_of_few_dimensions_do_not_stand_still(
    backend: str, dim: int, activation: Activation
) -> None:
    """There the combined residuals reach zero before f does."""
    weight, bias = weight_of(dim, torch.float64), torch.randn(20, dim, dtype=torch.float64)
    _, plain = iterate(weight, bias, activation=activation)
    _, fast = iterate(weight, bias, activation=activation, accelerate=True)
    assert status_of(fast) == [Status.CONVERGED] * 20
    assert sum(steps_of(fast)) < sum(steps_of(plain))


def test_fewer_steps(backend: str) -> None:
    """On paths with the symmetric normalisation of graph networks."""
    graphs = []
    for size in (40, 25, 33):
        ends = torch.full((size,), 3.0).index_fill(0, torch.tensor([0, size - 1]), 2.0)
        pairs = [(i, j) for i in range(size) for j in (i - 1, i, i + 1) if 0 <= j < size]
        graphs.append((size, [(i, j, float((ends[i] * ends[j]).rsqrt())) for i, j in pairs]))
    sparse = Sparse.of(graphs)
    weight = 0.6 * torch.eye(16, dtype=torch.float64) + weight_of(16, torch.float64, bound=0.2)
    bias = torch.randn(98, 16, dtype=torch.float64)
    options = {**sparse.arguments, "activation": Activation.RELU}
    _, plain = iterate(weight, bias, **options)
    _, fast = iterate(weight, bias, accelerate=True, **options)
    assert all(f <= 0.75 * p for f, p in zip(steps_of(fast), steps_of(plain), strict=True))


def test_native_follows_the_reference_step_by_step() -> None:
    sparse = Sparse.random([40, 1, 0, 60, 5], torch.float64)
    weight, bias = weight_of(17, torch.float64), torch.randn(106, 17, dtype=torch.float64)
    options = {**sparse.arguments, "accelerate": True, "activation": Activation.RELU}
    z, tables = iterate(weight, bias, **options)
    with dk.use_backend("reference"):
        expected, reference = iterate(weight, bias, **options)
    assert_close(z, expected, rtol=0, atol=1e-10)
    assert steps_of(tables) == steps_of(reference)
    assert_close(tables.trace, reference.trace, rtol=1e-5, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_step_that_raises_the_residual_is_taken_back(backend: str, graphs: bool) -> None:
    weight = torch.tensor([[0.05, 0.92], [-0.02, 0.95]], dtype=torch.float64)
    bias = torch.randn(40, 2, dtype=torch.float64)
    z0 = 10.0 * torch.randn(40, 2, dtype=torch.float64)
    options = Sparse.of([(1, [(0, 0, 1.0)])] * 40).arguments if graphs else {}
    options = {**options, "z0": z0, "activation": Activation.RELU, "norm": NormKind.MAX}
    z, tables = iterate(weight, bias, accelerate=True, **options)
    assert status_of(tables) == [Status.CONVERGED] * 40
    assert_close(z, torch.relu(z @ weight.T + bias), rtol=0, atol=1e-10)
    trace = tables.trace
    rises = (trace[:, 1:] > trace[:, :-1]).nonzero().tolist()
    assert len(rises) > 10
    for sample, step in rises:
        # The iterate before once more, and its damped step: in this norm f contracts by 0.97.
        again, before = float(trace[sample, step + 2]), float(trace[sample, step])
        assert again == before
        assert trace[sample, step + 3] <= 0.9701 * trace[sample, step]


def test_expansive_samples_end_as_diverged_or_at_the_limit(backend: str) -> None:
    weight = 3.0 * torch.eye(4, dtype=torch.float64)
    weight[0, 1] = 50.0
    bias = torch.randn(3, 4, dtype=torch.float64)
    z, tables = iterate(weight, bias, activation=Activation.SOFTPLUS, accelerate=True)
    assert set(status_of(tables)) <= {Status.DIVERGED, Status.MAX_STEPS}
    assert z.isfinite().all()
    best = (torch.nn.functional.softplus(z @ weight.T + bias) - z).norm(dim=1)
    assert_close(best, tables.norms[:, Norm.BEST], rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_scales(backend: str, dtype: torch.dtype, size: float) -> None:
    if dtype == torch.float16 and size != 1.0:
        size = 1e-3 if size < 1 else 1e3
    weight = weight_of(8, dtype, bound=0.8)
    bias = (torch.randn(5, 8) * size).to(dtype)
    z, tables = iterate(
        weight, bias, activation=Activation.RELU, rtol=1e-5, atol=0.0, accelerate=True
    )
    assert status_of(tables) == [Status.CONVERGED] * 5
    expected, _ = iterate(
        weight.double(), bias.double(), activation=Activation.RELU, rtol=1e-12, atol=0.0
    )
    rounding = max(1e-4, 4 * torch.finfo(dtype).eps)
    assert_close(z.double(), expected, rtol=rounding, atol=rounding * size)


@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_and_threads_change_no_bit(threads: int) -> None:
    sparse = Sparse.random([40, 500, 33, 1, 64], torch.float32)
    weight, bias = weight_of(64, torch.float32), torch.randn(638, 64)
    options = {"activation": Activation.RELU, "atol": 1e-5, "accelerate": True}
    torch.set_num_threads(threads)
    try:
        together, _ = iterate(weight, bias, **sparse.arguments, **options)
        rows, _ = iterate(weight, bias, **options)
    finally:
        torch.set_num_threads(1)
    ptr = sparse.sample_ptr
    for graph in range(5):
        begin, end = int(ptr[graph]), int(ptr[graph + 1])
        entries = slice(int(sparse.crow[begin]), int(sparse.crow[end]))
        alone, _ = iterate(
            weight,
            bias[begin:end],
            crow=sparse.crow[begin : end + 1] - sparse.crow[begin],
            col=sparse.col[entries] - begin,
            values=sparse.values[entries],
            sample_ptr=torch.tensor([0, end - begin]),
            **options,
        )
        assert alone.equal(together[begin:end])
    for row in (0, 100, 637):
        alone, _ = iterate(weight, bias[row : row + 1], **options)
        assert alone.equal(rows[row : row + 1])


def test_nan_in_one_sample_leaves_the_others(backend: str) -> None:
    weight, bias = weight_of(16, torch.float64), torch.randn(4, 16, dtype=torch.float64)
    clean, _ = iterate(weight, bias, accelerate=True)
    bias[2, 3] = torch.nan
    z, tables = iterate(weight, bias, accelerate=True)
    assert status_of(tables)[2] == Status.DIVERGED
    assert z[[0, 1, 3]].equal(clean[[0, 1, 3]])


def test_a_fixed_number_of_steps_is_not_accelerated() -> None:
    with pytest.raises(RuntimeError, match="fixed_steps are damped steps"):
        iterate(torch.eye(2), torch.zeros(1, 2), fixed_steps=True, accelerate=True)
