"""Evaluations by products of differences in bfloat16, with which a CPU solves wide graph cells."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from deq_kernels import Solution, Status, _native
from deq_kernels.cells import Adjacency
from python_tests.cells.batches import contraction
from python_tests.cells.solves import solve_graph

FEATURES = 61
SIZES = (70, 1, 0, 130, 40)
MAX_RULE: dict[str, Any] = {"norm": "max", "rtol": 0.0, "atol": 3e-6}
ROUNDING = 2e-6
"""Of a residual in float32, of states near 1."""

pytestmark = pytest.mark.skipif(
    _native.active_isa() != "avx512_bf16", reason="this processor multiplies no pairs of bfloat16"
)


@dataclass(frozen=True)
class _Cell:
    b: tuple[Tensor, ...]
    weight: Tensor
    graphs: tuple[Adjacency, ...]

    def solve(self, activation: str = "relu", **options: Any) -> Solution:
        return self._solve(torch.float32, activation, **options)

    def residuals(self, z: Tensor, activation: str = "relu") -> Tensor:
        """max |f(z) − z| of each graph, in float64."""
        once = {"z0": z.double(), "max_steps": 1, "norm": "max"}
        return self._solve(torch.float64, activation, **once).trace[:, 0]

    def _solve(self, dtype: torch.dtype, activation: str, **options: Any) -> Solution:
        seen: list[Solution] = []
        adjacency = Adjacency.from_graphs(self.graphs)
        solve_graph(
            torch.cat(self.b).to(dtype),
            self.weight.to(dtype),
            adjacency.with_values(adjacency.values.to(dtype)),
            activation=activation,
            on_solve=seen.append,
            **options,
        )
        return seen[0]


def _cell(sizes: tuple[int, ...] = SIZES, *, norm: float = 0.8, seed: int = 0) -> _Cell:
    """Graphs of some four entries per node, ‖A‖_1 = 1."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for size in sizes:
        draw = torch.rand(size, size, generator=generator)
        dense = torch.where(draw < 4 / max(size, 4), draw, 0.0) + torch.eye(size)
        dense /= dense.sum(0)
        index = dense.nonzero().T
        graphs.append(Adjacency.from_coo(index, dense[index[0], index[1]], nodes=size))
    torch.manual_seed(seed)
    weight = contraction(FEATURES, norm).float()
    return _Cell(tuple(torch.randn(size, FEATURES) for size in sizes), weight, tuple(graphs))


@pytest.mark.parametrize("activation", ["relu", "identity", "tanh"])
@pytest.mark.parametrize("norm", [0.5, 0.95])
def test_the_residual_that_is_reported_is_the_true_one(activation: str, norm: float) -> None:
    cell = _cell(norm=norm)
    solution = cell.solve(activation, **MAX_RULE)
    assert (solution.status == Status.CONVERGED).all()
    assert (cell.residuals(solution.z, activation) - solution.residual).abs().max() < ROUNDING
    exact = cell.solve(activation, accelerate=False, **MAX_RULE)
    assert (solution.z - exact.z).abs().max() < 1e-4


@pytest.mark.parametrize("max_steps", [1, 2, 3, 5, 8])
def test_so_is_that_of_a_solve_that_ran_out_of_steps(max_steps: int) -> None:
    cell = _cell((200, 90))
    solution = cell.solve(max_steps=max_steps, norm="max", rtol=1e-9)
    assert (solution.steps == max_steps).all()
    assert (cell.residuals(solution.z) - solution.residual).abs().max() < ROUNDING
    assert torch.equal(solution.residual, solution.trace[:, max_steps - 1])


def test_approximate_steps_are_near_the_exact_ones_and_not_many_more() -> None:
    program = """
from python_tests.cells.test_differences import MAX_RULE, _cell
solution = _cell(norm=0.9).solve(**MAX_RULE)
print(solution.trace[0, 2].item(), *solution.steps.tolist())
"""

    def found(isa: str) -> tuple[float, list[int]]:
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "DEQ_KERNELS_CPU_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        third, *steps = run.stdout.split()
        return float(third), [int(count) for count in steps]

    exact, approximate = found("avx512"), found("avx512_bf16")
    assert exact[0] != pytest.approx(approximate[0], rel=1e-5)
    # A move that is rounded leads to another iterate, not to a wrong residual of it.
    assert exact[0] == pytest.approx(approximate[0], rel=0.15)
    for one, other in zip(exact[1], approximate[1], strict=True):
        assert other <= one + 2


@pytest.mark.parametrize(("factor", "most"), [(0.99, 20), (0.999, 12), (0.9995, 5)])
def test_where_steps_are_short_the_solve_is_exact(factor: float, most: int) -> None:
    """J = 0.9995 I, say: a product's error moves the fixed point by 2,000 times as much."""
    loops = torch.arange(100).expand(2, 100)
    adjacency = Adjacency.from_coo(loops, torch.ones(100), nodes=100)
    # Between two numbers of bfloat16.
    cell = _Cell((torch.randn(100, FEATURES),), factor * torch.eye(FEATURES), (adjacency,))
    solution = cell.solve("identity", norm="l2", rtol=1e-6)
    assert solution.status[0] == Status.CONVERGED
    # Damped steps alone take more than a thousand; approximate ones, where they are short, some 20.
    assert solution.steps[0] <= most


def test_a_step_that_raises_the_residual_is_taken_back() -> None:
    """Then the iterate before is evaluated again, this time exactly."""
    rotating = torch.tensor([[0.05, 0.92], [-0.02, 0.95]])
    loop = Adjacency.from_coo(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), nodes=1)
    b = tuple(torch.randn(1, 60) for _ in range(60))
    cell = _Cell(b, torch.block_diag(*[rotating] * 30), (loop,) * 60)
    z0 = 10.0 * torch.randn(60, 60)
    solution = cell.solve(z0=z0, norm="max", rtol=0.0, atol=1e-4, stall_steps=None)
    assert (solution.status == Status.CONVERGED).all()
    trace = solution.trace
    rises = (trace[:, 1:] > trace[:, :-1]).nonzero()
    before, again = (trace[rises[:, 0], rises[:, 1] + later] for later in (0, 2))
    assert len(rises) > 100
    # What rose after a damped step stays where it is.
    assert ((again / before - 1.0).abs() < 0.05).double().mean() > 0.8


def test_a_graph_that_leaves_the_numbers_diverges_and_keeps_its_best_iterate() -> None:
    cell = _cell((60, 60))
    huge = _Cell((1e36 * cell.b[0], cell.b[1]), 40.0 * cell.weight, cell.graphs)
    solution = huge.solve("identity", divergence_factor=1e30, stall_steps=None)
    assert solution.status[0] == Status.DIVERGED
    assert solution.z.isfinite().all()
    assert solution.residual[0] == solution.trace[0].nan_to_num(torch.inf, torch.inf).min()


def test_a_graph_has_the_same_bits_in_any_batch() -> None:
    cell = _cell()
    together = cell.solve(**MAX_RULE)
    first = 0
    for number, b in enumerate(cell.b):
        alone = _Cell((b,), cell.weight, (cell.graphs[number],)).solve(**MAX_RULE)
        assert torch.equal(alone.z, together.z[first : first + len(b)])
        assert torch.equal(alone.trace[0].nan_to_num(), together.trace[number].nan_to_num())
        first += len(b)


def test_gradients_are_those_of_float64() -> None:
    cell = _cell((90, 30))
    loss = torch.randn(120, FEATURES)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [torch.cat(cell.b).to(dtype), cell.weight.to(dtype)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        adjacency = Adjacency.from_graphs(cell.graphs)
        values = adjacency.values.to(dtype).requires_grad_()
        z = solve_graph(*leaves, adjacency.with_values(values), activation="tanh", rtol=1e-6)
        found.append(torch.autograd.grad(z, [*leaves, values], loss.to(dtype)))
    for single, double in zip(*found, strict=True):
        assert (single - double).abs().max() < 1e-4 * double.abs().max()
