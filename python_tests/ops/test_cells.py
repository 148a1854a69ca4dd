"""The op family `cells` against dense float64 algebra, on every backend that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels.ops import OPS, cells
from deq_kernels.ops.cells import Activation, NormKind
from deq_kernels.ops.termination import Counter, Norm, Status, Tables
from python_tests.ops.conftest import COMPILED, running
from python_tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DIMS = (1, 3, 16, 17, 64, 100)
OPTIONS: dict[str, Any] = {
    "activation": Activation.TANH,
    "rtol": 0.0,
    "atol": 1e-10,
    "damping": 1.0,
    "norm": NormKind.TWO,
    "stall_steps": 0,
    "divergence_factor": 1e6,
}
# (row, column, value) of directed graphs: a chain with self loops, one without nodes, one with an
# isolated node, an entry given twice and columns that descend, one node alone, one node with a self
# loop, none again.
GRAPHS: tuple[tuple[int, list[tuple[int, int, float]]], ...] = (
    (4, [(0, 0, 0.5), (0, 1, 0.3), (1, 0, -0.4), (1, 2, 0.6), (2, 3, 0.7), (3, 3, -0.2)]),
    (0, []),
    (5, [(0, 4, 0.2), (0, 1, 0.3), (0, 1, 0.3), (2, 4, -0.5), (2, 2, 0.1), (4, 0, 0.9)]),
    (1, []),
    (1, [(0, 0, 0.8)]),
    (0, []),
)


@pytest.fixture(params=(*COMPILED, "reference"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param) as name:
        yield name


@dataclass
class Sparse:
    """S of a batch of graphs: as the op takes it, and dense in float64."""

    sizes: list[int]
    crow: Tensor
    col: Tensor
    values: Tensor

    @classmethod
    def of(cls, graphs: Any, dtype: torch.dtype = torch.float64) -> Sparse:
        sizes, crow, col, values = [], [0], [], []
        start = 0
        for size, entries in graphs:
            for row in range(size):
                of_row = [(start + c, v) for r, c, v in entries if r == row]
                col += [c for c, _ in of_row]
                values += [v for _, v in of_row]
                crow.append(len(col))
            sizes.append(size)
            start += size
        indices = torch.tensor(crow), torch.tensor(col, dtype=torch.int64)
        return cls(sizes, *indices, torch.tensor(values, dtype=dtype))

    @classmethod
    def random(cls, sizes: list[int], dtype: torch.dtype, *, degree: int = 4) -> Sparse:
        """Directed graphs of `degree` entries per row, of absolute sum below 1."""
        graphs = []
        for size in sizes:
            columns = torch.randint(max(size, 1), (size, degree)).tolist()
            values = (torch.rand(size, degree) * 2 - 1).div(degree).tolist()
            entries = [
                (row, columns[row][e], values[row][e]) for row in range(size) for e in range(degree)
            ]
            graphs.append((size, entries))
        return cls.of(graphs, dtype)

    @property
    def sample_ptr(self) -> Tensor:
        return torch.tensor([0, *self.sizes]).cumsum(0)

    @property
    def arguments(self) -> dict[str, Tensor]:
        return {
            "crow": self.crow,
            "col": self.col,
            "values": self.values,
            "sample_ptr": self.sample_ptr,
        }

    @property
    def dense(self) -> Tensor:
        rows = len(self.crow) - 1
        dense = torch.zeros(rows, rows, dtype=torch.float64)
        row_of = torch.arange(rows).repeat_interleave(self.crow.diff())
        return dense.index_put_((row_of, self.col), self.values.double(), accumulate=True)


def weight_of(dim: int, dtype: torch.dtype, *, bound: float = 0.9) -> Tensor:
    """V with absolute row sums of `bound`: f contracts by it, for S and φ of slope up to 1."""
    weight = torch.randn(dim, dim, dtype=torch.float64)
    return (weight * (bound / weight.abs().sum(1, keepdim=True))).to(dtype)


def iterate(
    weight: Tensor,
    bias: Tensor,
    *,
    max_steps: int = 200,
    z0: Tensor | None = None,
    tables: Tables | None = None,
    **options: Any,
) -> tuple[Tensor, Tables]:
    z = torch.zeros_like(bias).contiguous() if z0 is None else z0.clone()
    samples = options["sample_ptr"].numel() - 1 if "sample_ptr" in options else len(bias)
    tables = Tables.new(samples, max_steps, z.device) if tables is None else tables
    cells.iterate_(z, tables, weight, bias, **{**OPTIONS, **options})
    return z, tables


def status_of(tables: Tables) -> list[int]:
    return tables.counters[:, Counter.STATUS].tolist()


def steps_of(tables: Tables) -> list[int]:
    return tables.counters[:, Counter.STEPS].tolist()


def textbook(
    f: Callable[[Tensor], Tensor], z: Tensor, ptr: list[int], tables: Tables, **options: Any
) -> Tensor:
    """The iteration in dense float64, with the norms of the steps that `tables` says it took."""
    options = {**OPTIONS, **options}
    order = torch.inf if options["norm"] == NormKind.MAX else 2
    best, z = z.clone(), z.clone()
    smallest = [torch.inf] * (len(ptr) - 1)
    for step in range(int(tables.counters[:, Counter.STEPS].max())):
        f_z = f(z)
        for sample, (begin, end) in enumerate(pairwise(ptr)):
            rows = slice(begin, end)
            residual = 0.0
            if end > begin:
                r = f_z[rows] - z[rows]
                parts = r if options["norm"] == NormKind.ROWS else r.flatten()[None]
                residual = parts.norm(order, 1).max().item()
            if step < tables.counters[sample, Counter.STEPS]:
                expected = tables.trace[sample, step].item()
                assert residual == pytest.approx(expected, rel=1e-9, abs=1e-13)
                if residual < smallest[sample]:
                    smallest[sample] = residual
                    best[rows] = z[rows]
        z = z + options["damping"] * (f_z - z)
    torch.testing.assert_close(
        tables.norms[:, Norm.BEST],
        torch.tensor(smallest, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-13,
    )
    return best


@pytest.mark.parametrize("norm", list(NormKind))
@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("dim", DIMS)
def test_graphs_follow_dense_algebra(
    backend: str, dim: int, damping: float, norm: NormKind
) -> None:
    s = Sparse.of(GRAPHS)
    weight, bias = weight_of(dim, torch.float64), torch.randn(11, dim, dtype=torch.float64)
    z0, scale = (torch.rand(11, dim, dtype=torch.float64) for _ in range(2))
    options = {"damping": damping, "norm": norm}
    for c in (None, scale):
        z, tables = iterate(weight, bias, z0=z0, scale=c, **s.arguments, **options)
        assert status_of(tables) == [Status.CONVERGED] * 6
        assert tables.active.item() == 0
        mixed = 1.0 if c is None else c
        f = lambda x, m=mixed: torch.tanh(s.dense @ (m * x) @ weight.T + bias)  # noqa: E731
        expected = textbook(f, z0, s.sample_ptr.tolist(), tables, **options)
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
        assert steps_of(tables)[1] == 1


@pytest.mark.parametrize("norm", list(NormKind))
@pytest.mark.parametrize("rows", [1, 5, 60])
@pytest.mark.parametrize("dim", DIMS)
def test_rows_follow_dense_algebra(backend: str, dim: int, rows: int, norm: NormKind) -> None:
    """Rows of very different sizes stop at different steps, and leave the others alone."""
    weight, z0 = weight_of(dim, torch.float64), torch.rand(rows, dim, dtype=torch.float64)
    bias = torch.randn(rows, dim, dtype=torch.float64) * torch.logspace(-9, 0, rows)[:, None]
    for c in (None, torch.rand(rows, dim, dtype=torch.float64)):
        z, tables = iterate(weight, bias, z0=z0, scale=c, norm=norm)
        assert set(status_of(tables)) == {Status.CONVERGED}
        mixed = 1.0 if c is None else c
        f = lambda x, m=mixed: torch.tanh((m * x) @ weight.T + bias)  # noqa: E731
        expected = textbook(f, z0, list(range(rows + 1)), tables, norm=norm)
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
        if rows == 60:
            assert len(set(steps_of(tables))) > 1 or dim == 1


def test_groups_of_rows_without_s(backend: str) -> None:
    weight, bias = weight_of(5, torch.float64), torch.randn(60, 5, dtype=torch.float64)
    ptr = torch.tensor([0, 0, 7, 60])
    z, tables = iterate(weight, bias, sample_ptr=ptr)
    expected = textbook(
        lambda x: torch.tanh(x @ weight.T + bias), torch.zeros_like(z), ptr.tolist(), tables
    )
    torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 64])
def test_every_activation_and_dtype(
    backend: str, activation: Activation, dtype: torch.dtype, dim: int
) -> None:
    s = Sparse.random([6, 1, 50], dtype)
    bias = (2 * torch.randn(57, dim)).to(dtype)
    weight, scale = weight_of(dim, dtype), torch.rand(57, dim).to(dtype)
    options = {"activation": activation, "max_steps": 6, "fixed_steps": True}
    z, _ = iterate(weight, bias, scale=scale, **s.arguments, **options)
    expected = torch.zeros(57, dim, dtype=torch.float64)
    for _ in range(6):
        mixed = s.dense @ (scale.double() * expected)
        expected = cells.value(activation, mixed @ weight.double().T + bias.double())
    assert_close(z, expected, dtype)
    z, _ = iterate(weight, bias, **options)
    expected = torch.zeros_like(expected)
    for _ in range(6):
        expected = cells.value(activation, expected @ weight.double().T + bias.double())
    assert_close(z, expected, dtype)


def test_short_states_are_rounded_once(backend: str) -> None:
    """A solve in bfloat16 is as good as one in float32, rounded."""
    weight, bias = weight_of(33, torch.bfloat16), torch.randn(20, 33).bfloat16()
    z, tables = iterate(weight, bias, atol=1e-5)
    assert set(status_of(tables)) == {Status.CONVERGED}
    wide, _ = iterate(weight.float(), bias.float(), atol=1e-5)
    assert torch.equal(z, wide.bfloat16())


def test_adjoint_is_the_solution_of_its_linear_system(backend: str) -> None:
    """w = ℓ + A ((φ' ⊙ w) W), node-major."""
    s = Sparse.of(GRAPHS)
    weight, ell = weight_of(6, torch.float64), torch.randn(11, 6, dtype=torch.float64)
    slope = torch.rand(11, 6, dtype=torch.float64)
    w, _ = iterate(
        weight.T, ell, scale=slope, activation=Activation.IDENTITY, atol=1e-13, **s.arguments
    )
    system = torch.eye(66, dtype=torch.float64)
    system -= torch.kron(s.dense, weight.T.contiguous()) @ torch.diag(slope.flatten())
    expected = torch.linalg.solve(system, ell.flatten()).view(11, 6)
    torch.testing.assert_close(w, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_fixed_steps_leave_the_last_iterate(backend: str, damping: float) -> None:
    s = Sparse.of(GRAPHS)
    weight, bias = weight_of(3, torch.float64), torch.randn(11, 3, dtype=torch.float64)
    options = {"activation": Activation.IDENTITY, "damping": damping, "fixed_steps": True}
    for steps in (1, 4, 300):
        z, tables = iterate(weight, bias, max_steps=steps, **s.arguments, **options)
        expected = torch.zeros_like(bias)
        residuals = []
        for _ in range(steps):
            residual = s.dense @ expected @ weight.T + bias - expected
            residuals.append(torch.stack([r.norm() for r in residual.split(s.sizes)]))
            expected = expected + damping * residual
        torch.testing.assert_close(z, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tables.trace, torch.stack(residuals, 1), rtol=1e-9, atol=1e-12)
        assert torch.equal(tables.norms[:, Norm.BEST], tables.trace[:, -1])
        assert torch.equal(tables.norms[:, Norm.FIRST], tables.trace[:, 0])
        assert steps_of(tables) == [steps] * 6
        met = tables.trace[:, -1] <= OPTIONS["atol"]
        assert met[[1, 5]].all()
        assert met.all() == (steps == 300)
        done = torch.where(met, int(Status.CONVERGED), int(Status.MAX_STEPS))
        assert status_of(tables) == done.tolist()
        assert tables.active.item() == 0


def test_fixed_steps_tell_what_is_not_finite(backend: str) -> None:
    bias = torch.tensor([[1.0], [torch.nan], [0.0], [1e38]])
    options = {"activation": Activation.IDENTITY, "max_steps": 40, "fixed_steps": True}
    z, tables = iterate(torch.tensor([[2.0]]), bias, **options)
    wanted = [Status.MAX_STEPS, Status.DIVERGED, Status.CONVERGED, Status.DIVERGED]
    assert status_of(tables) == wanted
    assert steps_of(tables) == [40] * 4
    assert z[0] == 2.0**40 - 1.0


def test_every_status(backend: str) -> None:
    """z ← v z + b in one dimension each, block by block of a block-diagonal weight."""
    weight = torch.diag(torch.tensor([0.5, -1.0, 3.0, 0.99], dtype=torch.float64))
    bias = torch.eye(4, dtype=torch.float64)
    tables = Tables.new(5, 60, bias.device)
    tables.counters[4, Counter.STATUS] = Status.STALLED
    tables.active.fill_(4)
    bias = torch.cat((bias, bias[:1]))
    options = {"activation": Activation.IDENTITY, "stall_steps": 5, "divergence_factor": 100.0}
    z, _ = iterate(weight, bias, tables=tables, **options)
    wanted = [Status.CONVERGED, Status.STALLED, Status.DIVERGED, Status.MAX_STEPS, Status.STALLED]
    assert status_of(tables) == wanted
    steps = steps_of(tables)
    assert steps[1:] == [6, 6, 60, 0]
    assert tables.active.item() == 0
    # The best iterates: the solution, the start twice, the last one, and what was left alone.
    assert z[0, 0].item() == pytest.approx(2.0, abs=1e-9)
    assert z[1].tolist() == [0.0] * 4
    assert z[2].tolist() == [0.0] * 4
    assert z[3, 3].item() == pytest.approx(100 * (1 - 0.99**59), rel=1e-12)
    assert z[4].tolist() == [0.0] * 4
    assert tables.trace[2, :6].tolist() == [1.0, 3.0, 9.0, 27.0, 81.0, 243.0]


def test_every_status_of_graphs(backend: str) -> None:
    """The same maps as graphs of one node, whose entries of S are the slopes."""
    slopes = [0.5, -1.0, 3.0, 0.99, 0.5]
    s = Sparse.of([(1, [(0, 0, slope)]) for slope in slopes])
    tables = Tables.new(5, 60, s.crow.device)
    tables.counters[4, Counter.STATUS] = Status.STALLED
    tables.active.fill_(4)
    one = torch.ones(1, 1, dtype=torch.float64)
    bias = torch.ones(5, 1, dtype=torch.float64)
    z0 = torch.tensor([[0.0], [0.0], [0.0], [0.0], [7.0]], dtype=torch.float64)
    options = {"activation": Activation.IDENTITY, "stall_steps": 5, "divergence_factor": 100.0}
    z, _ = iterate(one, bias, z0=z0, tables=tables, **s.arguments, **options)
    wanted = [Status.CONVERGED, Status.STALLED, Status.DIVERGED, Status.MAX_STEPS, Status.STALLED]
    assert status_of(tables) == wanted
    assert steps_of(tables)[1:] == [6, 6, 60, 0]
    assert z[1].item() == z[2].item() == 0.0
    assert z[4].item() == 7.0
    assert z[3].item() == pytest.approx(100 * (1 - 0.99**59), rel=1e-12)


def test_the_best_iterate_is_returned_where_residuals_rise_in_between(backend: str) -> None:
    """A Jordan block: the residual falls, grows, and the steps end before it falls again."""
    weight = torch.tensor([[0.5, 4.0], [0.0, 0.5]], dtype=torch.float64)
    bias = torch.tensor([[1.0, 0.125]], dtype=torch.float64)
    for ptr in (None, torch.tensor([0, 1])):
        groups = {} if ptr is None else {"sample_ptr": ptr}
        for steps in (2, 3, 4, 9):
            z, tables = iterate(
                weight, bias, activation=Activation.IDENTITY, max_steps=steps, **groups
            )
            trace = tables.trace[0]
            iterates = [torch.zeros_like(bias)]
            for _ in range(steps):
                iterates.append(iterates[-1] @ weight.T + bias)
            torch.testing.assert_close(z, iterates[int(trace.argmin())], rtol=1e-14, atol=0.0)
            assert tables.norms[0, Norm.BEST] == trace.min()


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("groups", [False, True])
def test_an_iterate_of_before_stays_the_best_one(
    backend: str, groups: bool, accelerate: bool
) -> None:
    """Tables that tell of a smaller residual, on a map that never comes near it again."""
    z = torch.randn(6, 3, dtype=torch.float64)
    ptr = torch.tensor([0, 2, 2, 6]) if groups else None
    tables = Tables.new(3 if groups else 6, 4, z.device)
    tables.counters[:, Counter.STEPS] = 1
    tables.norms[:, [Norm.BEST, Norm.FIRST, Norm.PROGRESS]] = 1e-5
    weight = torch.eye(3, dtype=torch.float64)
    start = z.clone()
    options = {**OPTIONS, "activation": Activation.IDENTITY, "divergence_factor": 1e30}
    cells.iterate_(
        z, tables, weight, torch.ones_like(z), sample_ptr=ptr, accelerate=accelerate, **options
    )
    assert torch.equal(z, start)
    status = tables.counters[:, Counter.STATUS]
    assert (status[[0, 2]] == Status.MAX_STEPS).all()
    assert (tables.norms[[0, 2], Norm.BEST] == 1e-5).all()


@pytest.mark.parametrize(
    ("groups", "part"),
    [(False, "weight"), (False, "scale"), (True, "weight"), (True, "values"), (True, "scale")],
)
def test_zero_times_infinity_is_not_zero(backend: str, part: str, groups: bool) -> None:
    """A solve that starts at its apparent solution, zero."""
    dtype = torch.float64
    parts = {"weight": torch.eye(3, dtype=dtype) / 2, "scale": torch.ones(2, 3, dtype=dtype)}
    graph: dict[str, Any] = {}
    if groups:
        parts["values"] = torch.ones(2, dtype=dtype)
        graph = {"crow": torch.arange(3), "col": torch.arange(2), "sample_ptr": torch.arange(3)}
    parts[part].fill_(torch.inf)
    z = torch.zeros(2, 3, dtype=dtype)
    tables = Tables.new(2, 5, z.device)
    options = {**OPTIONS, "activation": Activation.IDENTITY}
    weight = parts.pop("weight")
    cells.iterate_(z, tables, weight, torch.zeros_like(z), **parts, **graph, **options)
    assert (tables.counters[:, Counter.STATUS] == Status.DIVERGED).all()
    assert (z == 0.0).all()


def test_relative_tolerance(backend: str) -> None:
    weight, bias = weight_of(9, torch.float64), torch.randn(30, 9, dtype=torch.float64)
    options = {"activation": Activation.IDENTITY, "atol": 0.0, "rtol": 1e-3}
    for norm, order in ((NormKind.TWO, 2), (NormKind.MAX, torch.inf)):
        for factor in (1.0, 1e-20, 1e20):
            z, tables = iterate(weight, factor * bias, norm=norm, **options)
            f = z @ weight.T + factor * bias
            assert set(status_of(tables)) == {Status.CONVERGED}
            residual, size = (x.norm(order, dim=1) for x in (f - z, f))
            assert (residual <= 1.0001e-3 * size).all()
            before = tables.trace.gather(1, tables.counters[:, Counter.STEPS, None] - 2)
            assert (before[:, 0] > 0.9e-3 * size).all()


@pytest.mark.parametrize("norm", list(NormKind))
def test_what_is_not_finite_stays_with_its_sample(backend: str, norm: NormKind) -> None:
    s = Sparse.random([7, 60, 9], torch.float32)
    weight, bias = weight_of(20, torch.float32), torch.randn(76, 20)
    for bad in (torch.nan, torch.inf):
        spoilt = bias.clone()
        spoilt[30, 11] = bad
        options = {"atol": 1e-5, "norm": norm, "activation": Activation.RELU}
        clean, clean_tables = iterate(weight, bias, **options, **s.arguments)
        z, tables = iterate(weight, spoilt, **options, **s.arguments)
        assert status_of(tables) == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
        rows, _ = iterate(weight, bias, **options)
        z_rows, spoilt_tables = iterate(weight, spoilt, **options)
        assert status_of(spoilt_tables)[30] == Status.DIVERGED
        others = [i for i in range(76) if i != 30]
        assert torch.equal(tables.counters[::2], clean_tables.counters[::2])
        assert torch.equal(z[:7], clean[:7])
        assert torch.equal(z[67:], clean[67:])
        assert torch.equal(z_rows[others], rows[others])
        # The start is what is left of the sample itself.
        assert not z[7:67].any()
        assert not z_rows[30].any()


def test_any_strides() -> None:
    weight, bias = weight_of(8, torch.float64), torch.randn(11, 8, dtype=torch.float64)
    scale = torch.rand(11, 8, dtype=torch.float64)
    s = Sparse.of(GRAPHS)
    wide = torch.full((11, 20), torch.nan, dtype=torch.float64)
    wide[:, 5:13] = bias
    columns = scale.T.contiguous().T
    for arguments in ({}, s.arguments):
        expected, _ = iterate(weight, bias, scale=scale, **arguments)
        z, _ = iterate(weight.T.contiguous().T, wide[:, 5:13], scale=columns, **arguments)
        assert torch.equal(z, expected)
        expected, _ = iterate(weight, bias[:1].repeat(11, 1), **arguments)
        z, _ = iterate(weight, bias[:1].expand(11, 8), **arguments)
        assert torch.equal(z, expected)
        expected, _ = iterate(weight, bias[:, :1].repeat(1, 8), **arguments)
        z, _ = iterate(weight, bias[:, :1].expand(11, 8), **arguments)
        assert torch.equal(z, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 24, 64])
def test_neither_threads_nor_neighbours_change_a_bit(
    set_threads: Callable[[int], None], dtype: torch.dtype, dim: int
) -> None:
    """Of graphs and of rows; the largest graph is solved by all threads together."""
    sizes = [5, 0, 47, 48, 49, 1300, 1]
    s = Sparse.random(sizes, dtype)
    starts = s.sample_ptr.tolist()
    weight, bias = weight_of(dim, dtype), torch.randn(sum(sizes), dim).to(dtype)
    scale = torch.rand(sum(sizes), dim).to(dtype)
    for norm in NormKind:
        options = {"atol": 1e-4, "norm": norm, "damping": 0.8}
        results = {}
        for threads in (1, 2, 3):
            set_threads(threads)
            graphs = iterate(weight, bias, scale=scale, **s.arguments, **options)
            results[threads] = (graphs, iterate(weight, bias, scale=scale, **options))
        for threads in (2, 3):
            for first, again in zip(results[1], results[threads], strict=True):
                assert torch.equal(first[0], again[0])
                torch.testing.assert_close(
                    first[1].record, again[1].record, rtol=0.0, atol=0.0, equal_nan=True
                )
                assert torch.equal(first[1].counters, again[1].counters)
        (z, tables), (rows, row_tables) = results[1]
        for graph, (begin, end) in enumerate(pairwise(starts)):
            entries = slice(int(s.crow[begin]), int(s.crow[end]))
            alone, alone_tables = iterate(
                weight,
                bias[begin:end],
                scale=scale[begin:end],
                crow=s.crow[begin : end + 1] - s.crow[begin],
                col=s.col[entries] - begin,
                values=s.values[entries],
                sample_ptr=torch.tensor([0, end - begin]),
                **options,
            )
            assert torch.equal(alone, z[begin:end])
            assert torch.equal(alone_tables.counters[0], tables.counters[graph])
        for row in (0, 50, 1449):
            one = slice(row, row + 1)
            alone, alone_tables = iterate(weight, bias[one], scale=scale[one], **options)
            assert torch.equal(alone, rows[one])
            assert torch.equal(alone_tables.counters[0], row_tables.counters[row])


@pytest.mark.parametrize(("rows", "dim"), [(0, 4), (3, 0), (0, 0)])
def test_empty_sizes(backend: str, rows: int, dim: int) -> None:
    weight, bias = torch.zeros(dim, dim), torch.zeros(rows, dim)
    z, tables = iterate(weight, bias, scale=bias)
    assert z.shape == (rows, dim)
    assert status_of(tables) == [Status.CONVERGED] * rows
    s = Sparse.of([(rows, [(r, r, 1.0) for r in range(rows)])], torch.float32)
    z, tables = iterate(weight, bias, **s.arguments)
    assert status_of(tables) == [Status.CONVERGED]
    _, tables = iterate(weight, bias[:0], sample_ptr=torch.tensor([0]))
    assert status_of(tables) == []
    assert tables.active.item() == 0


def problem() -> tuple[Tensor, Tensor, dict[str, Any]]:
    s = Sparse.of(GRAPHS, torch.float32)
    return weight_of(3, torch.float32), torch.randn(11, 3), s.arguments


def changed(**new: Any) -> Callable[[], object]:
    """A call of the op with some of its arguments replaced."""

    def call() -> object:
        weight, bias, arguments = problem()
        arguments = {**arguments, **{k: v for k, v in new.items() if k not in ("weight", "bias")}}
        return iterate(
            new.get("weight", weight),
            new.get("bias", bias),
            **{k: v for k, v in arguments.items() if v is not None},
        )

    return call


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed(weight=torch.zeros(3, 4)), "weight must have size 3 in dimension 1, got 4"),
        (changed(weight=torch.zeros(3, 3).double()), "weight must have dtype"),
        (changed(bias=torch.zeros(10, 3)), "crow must have size 11 in dimension 0, got 12"),
        (changed(scale=torch.zeros(11, 2)), "scale must have size 3 in dimension 1, got 2"),
        (changed(scale=torch.zeros(11, 3).double()), "scale must have dtype"),
        (changed(crow=torch.zeros(12, dtype=torch.int32)), "crow must have dtype"),
        (changed(crow=torch.zeros(12).long()), "crow must begin with 0 and end with 13"),
        (changed(col=torch.zeros(11).long()), "col must have size 13 in dimension 0, got 11"),
        (changed(col=torch.full((13,), 4)), "col must stay within the rows of sample 0, 0 to 4"),
        (changed(col=torch.full((13,), -1)), "got -1 at entry 0"),
        (changed(values=torch.zeros(13).double()), "values must have dtype"),
        (changed(values=None), "crow, col and values must be given together"),
        (changed(sample_ptr=None), "crow needs sample_ptr"),
        (changed(sample_ptr=torch.tensor([0, 7, 5, 11])), "sample_ptr must not descend"),
        (changed(sample_ptr=torch.tensor([0, 7, 12])), "sample_ptr must begin with 0 and end"),
        (changed(activation=99), "activation must be 0 to [0-9]+, got 99"),
        (changed(activation=-1), "activation must be 0 to [0-9]+, got -1"),
        (changed(norm=3), "norm must be 0 to 2, got 3"),
        (changed(tables=Tables.new(3, 5, torch.device("cpu"))), "record must have size 6"),
        (changed(z0=torch.zeros(3, 11).T), "z must be contiguous"),
    ],
)
def test_errors(backend: str, call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


def test_used_up_tables_are_refused(backend: str) -> None:
    weight, bias, arguments = problem()
    tables = Tables.new(6, 2, bias.device)
    tables.counters[2, Counter.STEPS] = 2
    with pytest.raises(RuntimeError, match="sample 2 still runs but has used all 2 steps"):
        iterate(weight, bias, tables=tables, **arguments)


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("with_graph", [True, False])
def test_opcheck(with_graph: bool, accelerate: bool) -> None:
    weight, bias, arguments = problem()
    names = ("crow", "col", "values", "sample_ptr")
    graph = [arguments[name] if with_graph else None for name in names]
    tables = Tables.new(6 if with_graph else 11, 5, bias.device)
    record = tables.record.zero_()
    state = (torch.zeros_like(bias), record, tables.counters, tables.active)
    options = (2, 0.0, 1e-4, 1.0, 0, 0, 1e6, False, accelerate)
    torch.library.opcheck(
        OPS["cells_iterate_"].overload,
        (weight, *graph, bias, torch.ones_like(bias), *state, *options),
    )
