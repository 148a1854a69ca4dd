"""Solves in step with other processes: all evaluate f equally often, and no bit changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import Status
from deq_kernels.solvers.machinery import loop
from deq_kernels.solvers.machinery.ranks import Ranks, largest_over
from deq_kernels.solvers.machinery.running import CurrentCount, DelayedCount, own_count

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch lacks gloo"
)

RANKS = 2
TIMEOUT_S = 240.0


class LateSlots:
    """Delivers a count when it is asked for, as a GPU may."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}

    def send(self, count: Tensor, slot: int) -> None:
        self._slots[slot] = int(count)

    def receive(self, slot: int) -> int:
        return self._slots.pop(slot)


@contextmanager
def _late(active: Tensor, synchronized: Ranks = False) -> Iterator[DelayedCount]:
    agree = largest_over(synchronized) if synchronized else own_count
    yield DelayedCount(active, LateSlots(), agree)


class Sum(torch.autograd.Function):
    """The sum over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class Sharded:
    """f(z) = gain z + x, elementwise; every evaluation gathers `gain` from all ranks."""

    def __init__(self, rank: int) -> None:
        self.shard = torch.tensor([0.25, 0.5][rank], dtype=torch.float64)
        self.calls = 0

    def __call__(self, z: Tensor, own: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return Sum.apply(self.shard) * own * z + x


def _problem(rank: int, batch: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """z0 and inputs: the samples of rank 1 need many more steps than those of rank 0."""
    torch.manual_seed(rank)
    largest = (0.1, 0.9)[rank]
    own = largest * torch.linspace(0.2, 1.0, batch, dtype=torch.float64)[:, None]
    own = own * torch.linspace(-1, 1, 8, dtype=torch.float64)
    return torch.zeros(batch, 8, dtype=torch.float64), own, torch.randn(batch, 8).double()


def _largest(value: int) -> int:
    count = torch.tensor([value])
    dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return int(count)


def _check_solver(rank: int, solver: type[dk.Solver], late: bool) -> None:
    z0, own, x = _problem(rank)
    options: dict[str, Any] = {"max_steps": 90, "rtol": 1e-9}
    alone = solver(**options)(lambda z: 0.75 * own * z + x, z0)
    assert alone.converged.all()
    steps = int(alone.steps.max())
    largest = _largest(steps)
    assert (steps < largest) == (rank == 0), "the ranks should need different numbers of steps"
    for compact in (False, True):
        f = Sharded(rank)
        together = solver(synchronized=True, compact=compact, **options)(
            dk.PerSample(f, own, x), z0
        )
        assert f.calls == largest + late
        if not compact:
            assert together.evaluations == f.calls * len(z0)
        elif rank == 1 and solver is not dk.GMRES:  # whose samples stop together
            assert together.evaluations < f.calls * len(z0)
        for now, before in (
            (together.z, alone.z),
            (together.steps, alone.steps),
            (together.status, alone.status),
            (together.trace.nan_to_num(-1.0), alone.trace.nan_to_num(-1.0)),
        ):
            assert torch.equal(now, before)


def _check_rank_without_samples(rank: int) -> None:
    z0, own, x = (tensor if rank else tensor[:0] for tensor in _problem(rank))
    f = Sharded(rank)
    for solver in (dk.Broyden, dk.FixedPoint, dk.Anderson):
        before = f.calls
        solution = solver(synchronized=True, max_steps=90)(dk.PerSample(f, own, x), z0)
        assert solution.z.shape == z0.shape
        steps = int(solution.steps.max()) if rank else 0
        assert f.calls - before == _largest(steps)


def _check_samples_that_fail(rank: int) -> None:
    """The rank whose samples all diverge at once goes on for the other."""
    z0, own, x = _problem(rank)
    f = Sharded(rank)
    if rank == 0:
        x = torch.full_like(x, torch.nan)
    solution = dk.Broyden(synchronized=True, max_steps=90)(dk.PerSample(f, own, x), z0)
    expected = Status.DIVERGED if rank == 0 else Status.CONVERGED
    assert (solution.status == expected).all()
    assert f.calls == _largest(int(solution.steps.max())) > 2


def _check_group(rank: int) -> None:
    """In a group of its own each rank takes its own number of steps."""
    groups = [dist.new_group([member]) for member in range(RANKS)]
    z0, own, x = _problem(rank)
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.75 * own * z + x

    solution = dk.Broyden(synchronized=groups[rank], max_steps=90)(f, z0)
    assert calls == int(solution.steps.max())
    with pytest.raises(ValueError, match="a process group that this rank belongs to; got"):
        dk.Broyden(synchronized=groups[1 - rank])


def _check_unequal_steps(rank: int) -> None:
    """All ranks learn of it before one waits, at the first solve, a later one and the adjoint."""
    z0, own, x = _problem(rank)
    f = Sharded(rank)
    unequal = dk.Broyden(synchronized=True, max_steps=(1, 90)[rank])
    message = "max_steps must be the same on all ranks .*; got 1 on rank 0, 90 on rank 1"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            unequal(dk.PerSample(f, own, x), z0)
        assert f.calls == 0
        dk.Broyden(synchronized=True)(dk.PerSample(f, own, x), z0)
        f.calls = 0
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    equal = dk.Broyden(synchronized=True)
    layer = dk.DEQ(
        lambda z, x: scale * f(z, own, x), solver=equal, gradient=dk.Implicit(solver=unequal)
    )
    z = layer(z0, x)
    with pytest.raises(ValueError, match=message):
        z.sum().backward()


def _check_layer(rank: int) -> None:
    """Forward and adjoint solves in step; f and its products with Jᵀ both communicate."""
    z0, own, x = _problem(rank)
    gradients = []
    adjoint_steps = []
    for synchronized in (False, True):
        scale = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)

        def cell(
            z: Tensor, x: Tensor, scale: Tensor = scale, together: bool = synchronized
        ) -> Tensor:
            # What other ranks do is communicated, then multiplied with zero.
            echo = 0.0 * Sum.apply(z.mean()) if together else 0.0
            return scale * own * torch.sin(z) + x + echo

        solver = dk.Broyden(max_steps=90, rtol=1e-9, synchronized=synchronized)
        gradient = dk.Implicit(
            solver=solver, on_solve=lambda s: adjoint_steps.append(int(s.steps.max()))
        )
        layer = dk.DEQ(cell, solver=solver, gradient=gradient)
        layer(z0, x).square().sum().backward()
        gradients.append(scale.grad)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=0.0)
    assert adjoint_steps[0] == adjoint_steps[1]
    assert (adjoint_steps[0] < _largest(adjoint_steps[0])) == (rank == 0)


def _run(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    try:
        for solver in (dk.Broyden, dk.FixedPoint, dk.Anderson, dk.GMRES):
            _check_solver(rank, solver, late=False)
        _check_rank_without_samples(rank)
        _check_samples_that_fail(rank)
        _check_group(rank)
        _check_unequal_steps(rank)
        _check_layer(rank)
        loop.running_count = _late  # type: ignore[assignment]
        _check_solver(rank, dk.Broyden, late=True)
    finally:
        dist.destroy_process_group()


def test_all_ranks_evaluate_f_equally_often(tmp_path: Path) -> None:
    """Two processes; what they check raises here."""
    processes = mp.spawn(_run, args=(str(tmp_path),), nprocs=RANKS, join=False)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not processes.join(timeout=5.0):  # returns whenever one process has ended
            assert time.monotonic() < deadline, "the processes still wait for each other"
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()


@pytest.mark.parametrize("value", [1, "all", None, object()])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="synchronized must be True, False or a process group"):
        dk.Broyden(synchronized=value)  # type: ignore[arg-type]


def test_a_process_group_must_be_there() -> None:
    with pytest.raises(RuntimeError, match="synchronized needs a process group, but there is none"):
        dk.Broyden(synchronized=True)(lambda z: 0.5 * z, torch.zeros(2, 3))


def test_a_solver_that_differentiates_f_is_refused() -> None:
    with pytest.raises(ValueError, match="AdjointBroyden must have compact=False and synchronized"):
        dk.AdjointBroyden(synchronized=True)


@pytest.mark.parametrize("late", [False, True])
def test_the_agreed_count_is_the_one_to_go_by(late: bool) -> None:
    """This process's own count stays as the steps left it."""
    active = torch.tensor([0])

    def agree(count: Tensor) -> Tensor:
        return count + 5

    count: DelayedCount | CurrentCount = CurrentCount(active, agree)
    if late:
        count = DelayedCount(active, LateSlots(), agree)
        assert count.left() is None
    assert count.left() == 5
    assert active == 0


def test_ranks_need_not_be_several(tmp_path: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        problem: Callable[[Tensor], Tensor] = lambda z: 0.5 * z + 1.0  # noqa: E731
        together = dk.Broyden(synchronized=True)(problem, torch.zeros(2, 3))
        assert torch.equal(together.z, dk.Broyden()(problem, torch.zeros(2, 3)).z)
        assert together.evaluations == 2 * int(together.steps.max())
        empty = dk.Broyden(synchronized=dist.group.WORLD)(problem, torch.zeros(0, 3))
        assert empty.z.shape == (0, 3)
    finally:
        dist.destroy_process_group()
