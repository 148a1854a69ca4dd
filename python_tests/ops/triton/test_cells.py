"""The dense cell in Triton, against the reference and float64."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import cells
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.termination import Counter, Status, Tables
from python_tests.gpu.against_float64 import same_bits
from python_tests.gpu.engines import Engine
from python_tests.gpu.states import copy_to, solved_rows, with_odd_rows

OPTIONS: dict[str, Any] = {
    "activation": Activation.TANH,
    "rtol": 0.0,
    "atol": 1e-5,
    "damping": 1.0,
    "norm": NormKind.TWO,
    "stall_steps": 0,
    "divergence_factor": 1e6,
}
# Rounding of one product of 40 terms, carried through a contraction by 0.9.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass
class Solved:
    """What an iteration left."""

    z: Tensor
    tables: Tables

    @property
    def status(self) -> list[int]:
        return self.tables.counters[:, Counter.STATUS].tolist()

    @property
    def steps(self) -> list[int]:
        return self.tables.counters[:, Counter.STEPS].tolist()


def iterate(
    engine: Engine,
    weight: Tensor,
    bias: Tensor,
    *,
    z0: Tensor | None = None,
    max_steps: int = 60,
    tables: Tables | None = None,
    backend: str = "triton",
    **options: Any,
) -> Solved:
    start = torch.zeros(bias.shape, dtype=bias.dtype) if z0 is None else z0.clone()
    z = start.to(engine.device)
    if tables is None:
        tables = Tables.new(len(bias), max_steps, z.device)
    options = {
        name: x.to(engine.device) if isinstance(x, Tensor) else x for name, x in options.items()
    }
    with dk.use_backend(backend):
        cells.iterate_(
            z,
            tables,
            weight.to(engine.device),
            bias.to(engine.device),
            **{**OPTIONS, **options},
        )
    return Solved(z, tables)


def weight_of(dim: int, dtype: torch.dtype, *, bound: float = 0.9) -> Tensor:
    weight = torch.randn(dim, dim, dtype=torch.float64)
    return (weight * (bound / weight.abs().sum(1, keepdim=True))).to(dtype)


def assert_same(one: Solved, other: Solved, tolerance: float) -> None:
    assert same_bits(one.tables.counters, other.tables.counters)
    assert same_bits(one.tables.active, other.tables.active)
    bounds = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(one.z, other.z, equal_nan=True, **bounds)
    record, expected = one.tables.record, other.tables.record
    torch.testing.assert_close(record, expected, equal_nan=True, **bounds)


@pytest.mark.parametrize(
    ("dim", "dtype", "norm"),
    [
        (1, torch.float64, NormKind.TWO),
        (37, torch.float64, NormKind.MAX),
        (40, torch.float32, NormKind.TWO),
        (16, torch.float16, NormKind.MAX),
        (33, torch.bfloat16, NormKind.TWO),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_follows_the_reference(
    engine: Engine, dim: int, dtype: torch.dtype, norm: NormKind, scaled: bool
) -> None:
    """Two tiles of rows, the second with few; odd rows, and either dimension of V dense."""
    sizes = torch.logspace(-3, 0, 18)[:, None]
    weight, bias = weight_of(dim, dtype), with_odd_rows((sizes * torch.randn(18, dim)).to(dtype))
    options: dict[str, Any] = {"norm": norm, "damping": 0.7 if scaled else 1.0}
    if scaled:
        weight = weight.T.contiguous().T
        options["scale"] = with_odd_rows(torch.rand(18, dim).to(dtype))
    solved = iterate(engine, weight, bias, **options)
    assert Status.CONVERGED in solved.status
    assert len(set(solved.steps)) > 1, "rows must stop by themselves"
    expected = iterate(engine, weight, bias, backend="reference", **options)
    # Residuals are those of float32, whose trajectories may part by rounding.
    assert_same(solved, expected, max(TOLERANCES[dtype], 1e-13))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scaled", [False, True])
def test_accelerated_steps_follow_the_reference(
    engine: Engine, dtype: torch.dtype, scaled: bool
) -> None:
    """Also where steps are taken back: V has a strong rotation in it."""
    turn = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    weight = (0.85 * turn).to(dtype)
    bias = (torch.logspace(-2, 1, 18)[:, None] * torch.randn(18, 24)).to(dtype)
    options: dict[str, Any] = {"accelerate": True, "max_steps": 80, "damping": 0.8}
    options |= {"activation": Activation.ELU, "norm": NormKind.MAX, "atol": 1e-3}
    if scaled:
        options["scale"] = 0.95 + 0.1 * torch.rand(18, 24, dtype=dtype)
    solved = iterate(engine, weight, bias, **options)
    assert set(solved.status) == {Status.CONVERGED}
    rises = solved.tables.trace.diff() > 0
    assert bool(rises.any()), "some step must be taken back"
    plain = {**options, "accelerate": False}
    damped = iterate(engine, weight, bias, backend="reference", **plain)
    assert solved.steps != damped.steps
    expected = iterate(engine, weight, bias, backend="reference", **options)
    # What extrapolation makes of a rounding may be many times as large.
    assert_same(solved, expected, 1e-11 if dtype == torch.float64 else 3e-4)


@pytest.mark.parametrize("dim", [1, 2])
def test_what_no_longer_holds_is_forgotten(engine: Engine, dim: int) -> None:
    """Else accelerated steps of a curved cell of few dimensions would come to stand still."""
    weight, bias = weight_of(dim, torch.float64), torch.randn(9, dim, dtype=torch.float64)
    options = {"accelerate": True, "atol": 1e-9}
    solved = iterate(engine, weight, bias, **options)
    assert solved.status == [Status.CONVERGED] * 9
    assert_same(solved, iterate(engine, weight, bias, backend="reference", **options), 1e-11)


def one_chain(a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
    """a b + d as a GPU adds it up, a multiply-add for each term."""
    total = d.copy()
    for k in range(a.shape[1]):
        total += a[:, k, None] * b[k]
    return total


def test_long_products_are_rounded_no_more_often_than_short_ones(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.device.type == "cpu":
        # The interpreter's own product adds in an order of its own.
        interpreter = importlib.import_module("triton.runtime.interpreter")

        def create_dot(builder: Any, a: Any, b: Any, d: Any, *ignored: Any) -> Any:
            return interpreter.TensorHandle(one_chain(a.data, b.data, d.data), d.dtype.scalar)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    cell = copy_to(solved_rows(5, 1000), engine.device)
    cell.iterate(**{**OPTIONS, "activation": Activation.IDENTITY, "norm": NormKind.MAX})
    assert cell.tables.trace.max() <= 4e-7 * cell.z.max()


def test_is_the_solution_of_the_equation(engine: Engine) -> None:
    """In float64 and to rounding: no reference that could be wrong in the same way."""
    weight, bias = weight_of(24, torch.float64), torch.randn(3, 24, dtype=torch.float64)
    options = {"activation": Activation.IDENTITY, "atol": 1e-13, "max_steps": 400}
    solved = iterate(engine, weight, bias, **options)
    expected = torch.linalg.solve(torch.eye(24, dtype=torch.float64) - weight, bias.T).T
    torch.testing.assert_close(solved.z.cpu(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", list(Activation))
def test_activations(engine: Engine, activation: Activation, dtype: torch.dtype) -> None:
    """Relative to the value, also next to 0 and far out; NaN stays."""
    edges = [0.0, 1e-30, -1e-30, 1e-5, -1e-5, 0.6, -0.6, -0.99, -1.01, 12.0, -12.0, 300.0, -300.0]
    x = torch.cat([torch.tensor(edges), torch.linspace(-9, 9, 50)]).to(dtype)[None]
    x = torch.cat([x, torch.full_like(x, float("nan"))])
    weight = torch.zeros(x.shape[1], x.shape[1], dtype=dtype)
    options = {"activation": activation, "max_steps": 1, "fixed_steps": True}
    value = iterate(engine, weight, x, **options).z.cpu()
    expected = cells.value(activation, x.double())
    bound = 8 * torch.finfo(dtype).eps
    # Far out in a tail what is left of gelu is a difference to 0.
    near = bound * x.abs().double() if activation == Activation.GELU else 0.0
    error = (value[0].double() - expected[0]).abs()
    allowed = bound * expected[0].abs() + torch.finfo(dtype).tiny
    assert bool((error <= allowed + (near[0] if isinstance(near, Tensor) else 0.0)).all())
    assert bool(value[1].isnan().all())


@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_fixed_steps_leave_the_last_iterate(engine: Engine, damping: float) -> None:
    weight, bias = weight_of(9, torch.float32), torch.randn(4, 9)
    bias[2, 3] = torch.inf
    options = {"fixed_steps": True, "max_steps": 5, "damping": damping, "rtol": 0.5}
    options["activation"] = Activation.IDENTITY
    solved = iterate(engine, weight, bias, z0=torch.randn(4, 9), **options)
    assert solved.steps == [5] * 4
    assert solved.status[2] == Status.DIVERGED
    torch.manual_seed(0)  # the start above is the only difference that could be
    start = torch.randn(4, 9)
    assert_same(
        iterate(engine, weight, bias, z0=start, **options),
        iterate(engine, weight, bias, z0=start, backend="reference", **options),
        3e-6,
    )


def test_every_status_and_rows_that_do_not_run(engine: Engine) -> None:
    """z = c w z + b, row by row: contracting, slow, growing, standing still, NaN, and stopped."""
    weight = torch.eye(2, dtype=torch.float64)
    factors = torch.tensor([0.1, 0.97, 3.0, -1.0, 0.5, 0.5], dtype=torch.float64)
    scale = factors[:, None].expand(-1, 2).contiguous()
    bias = torch.ones(6, 2, dtype=torch.float64)
    bias[4, 1] = torch.nan
    options: dict[str, Any] = {"scale": scale, "activation": Activation.IDENTITY, "atol": 1e-9}
    options |= {"stall_steps": 7, "divergence_factor": 100.0}
    solved = {}
    for backend in ("triton", "reference"):
        tables = Tables.new(6, 30, engine.device)
        tables.counters[5, Counter.STATUS] = Status.CONVERGED
        tables.active.fill_(5)
        start = torch.zeros(6, 2, dtype=torch.float64)
        start[5] = 7.0
        solved[backend] = iterate(
            engine, weight, bias, z0=start, tables=tables, backend=backend, **options
        )
    found = solved["triton"]
    assert found.status == [
        *(Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED, Status.STALLED, Status.DIVERGED),
        Status.CONVERGED,
    ]
    assert found.z[5].tolist() == [7.0, 7.0]
    assert_same(found, solved["reference"], 1e-13)


def test_the_best_iterate_is_returned_where_residuals_rise_in_between(engine: Engine) -> None:
    weight = torch.tensor([[0.0, 4.0], [-0.1, 0.0]], dtype=torch.float64)
    bias = torch.randn(5, 2, dtype=torch.float64)
    options = {"activation": Activation.IDENTITY, "atol": 0.0, "max_steps": 6}
    solved = iterate(engine, weight, bias, **options)
    trace = solved.tables.trace
    assert bool((trace.diff() > 0).any()), "some residual must rise"
    assert_same(solved, iterate(engine, weight, bias, backend="reference", **options), 1e-13)
    residual = torch.linalg.vector_norm(solved.z.cpu() @ weight.T + bias - solved.z.cpu(), dim=1)
    torch.testing.assert_close(residual, trace.min(1).values.cpu(), rtol=1e-12, atol=1e-14)


def test_neighbours_change_no_bit(engine: Engine) -> None:
    weight, bias = weight_of(20, torch.float32), torch.randn(17, 20)
    whole = iterate(engine, weight, bias)
    others = torch.randn(17, 20) * 5
    others[3] = bias[3]
    others[9] = torch.nan
    changed = iterate(engine, weight, others)
    assert same_bits(whole.z[3], changed.z[3])
    assert same_bits(whole.tables.record[3], changed.tables.record[3])


def test_used_up_tables_are_not_written_beyond(engine: Engine) -> None:
    """A row that still runs although its steps are used up stops at once."""
    tables = Tables.new(2, 3, engine.device)
    tables.counters[0, Counter.STEPS] = 3
    solved = iterate(engine, weight_of(4, torch.float32), torch.randn(2, 4), tables=tables)
    assert solved.status[0] != Status.RUNNING
    assert bool(solved.tables.trace[0].isnan().all())
    assert solved.tables.record[1, 0].isfinite()


def test_graphs_take_the_reference(engine: Engine) -> None:
    weight, bias = weight_of(3, torch.float32), torch.randn(4, 3)
    s = {
        "crow": torch.tensor([0, 1, 2, 3, 4]),
        "col": torch.tensor([1, 0, 3, 2]),
        "values": torch.full((4,), 0.5),
        "sample_ptr": torch.tensor([0, 2, 4]),
    }
    solved = {}
    for backend in ("triton", "reference"):
        tables = Tables.new(2, 60, engine.device)
        solved[backend] = iterate(engine, weight, bias, tables=tables, backend=backend, **s)
    assert solved["triton"].status == [Status.CONVERGED] * 2
    assert_same(solved["triton"], solved["reference"], 0.0)


@pytest.mark.parametrize(("rows", "dim"), [(0, 4), (3, 0)])
def test_empty_sizes(engine: Engine, rows: int, dim: int) -> None:
    solved = iterate(engine, torch.zeros(dim, dim), torch.zeros(rows, dim))
    assert solved.z.shape == (rows, dim)
    assert solved.status == [Status.CONVERGED] * rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(3, 4)}, "weight must have size 3 in dimension 1, got 4"),
        ({"weight": torch.zeros(3, 3).double()}, "weight must have dtype"),
        ({"scale": torch.zeros(5, 2)}, "scale must have size 3 in dimension 1, got 2"),
        ({"activation": 99}, "activation must be 0 to [0-9]+, got 99"),
        ({"norm": 3}, "norm must be 0 to 2, got 3"),
        ({"z0": torch.zeros(3, 5).T}, "z must be contiguous"),
        ({"fixed_steps": True, "accelerate": True}, "fixed_steps are damped steps"),
    ],
)
def test_errors(engine: Engine, changes: dict[str, Any], message: str) -> None:
    arguments = {"weight": torch.zeros(3, 3), "bias": torch.zeros(5, 3), **changes}
    with pytest.raises(RuntimeError, match=message):
        iterate(engine, **arguments)
