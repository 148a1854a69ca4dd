"""The loop around one op per step: when it learns of the end, and what it evaluates until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import Status, damped
from deq_kernels.ops.termination import Counter, Tables
from deq_kernels.solvers.machinery import loop, running
from deq_kernels.solvers.machinery.evaluation import bind_evaluation
from deq_kernels.solvers.machinery.loop import Advance, repeat
from deq_kernels.solvers.machinery.ranks import Ranks
from deq_kernels.solvers.machinery.running import CurrentCount, DelayedCount, running_count
from deq_kernels.solvers.machinery.structure import Structure
from python_tests.problems import Tanh

SOLVERS = (dk.Broyden, dk.FixedPoint)


class DelayedSlots:
    """Delivers as a GPU may: a count arrives only when it is asked for, and as it was sent."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []
        self._slots: dict[int, int] = {}

    def send(self, count: Tensor, slot: int) -> None:
        assert slot not in self._slots, "a slot was overwritten before it was read"
        self._slots[slot] = int(count)
        self.log.append(("send", slot, int(count)))

    def receive(self, slot: int) -> int:
        assert self.log[-1][0] == "send", "two counts were read between two steps"
        assert self.log[-1][1] != slot, "the count of the step just taken was read"
        self.log.append(("receive", slot, self._slots[slot]))
        return self._slots.pop(slot)


class Countdown:
    """Takes steps that leave a given number of samples running each."""

    def __init__(self, *left: int) -> None:
        self.active = torch.tensor([7])
        self.taken = 0
        self._left = left

    def __call__(self) -> None:
        self.active.fill_(self._left[min(self.taken, len(self._left) - 1)])
        self.taken += 1


@pytest.mark.parametrize(
    ("left", "max_steps", "present", "late"),
    [
        ((0,), 9, 1, 2),
        ((3, 0), 9, 2, 3),
        ((3, 2, 2, 0), 9, 4, 5),
        ((3, 2, 2, 0), 5, 4, 5),
        ((3, 2, 2, 0), 4, 4, 4),
        ((3, 2, 2, 0), 3, 3, 3),
        ((0,), 1, 1, 1),
        ((5,), 6, 6, 6),
    ],
)
def test_a_late_count_costs_one_evaluation_and_never_exceeds_max_steps(
    left: tuple[int, ...], max_steps: int, present: int, late: int
) -> None:
    steps = Countdown(*left)
    taken = repeat(steps, CurrentCount(steps.active), max_steps, None)
    assert taken == steps.taken == present
    steps, slots = Countdown(*left), DelayedSlots()
    taken = repeat(steps, DelayedCount(steps.active, slots), max_steps, None)
    assert taken == steps.taken == late
    # The last step's count is nobody's concern.
    sent = [entry for entry in slots.log if entry[0] == "send"]
    assert len(sent) == min(late, max_steps - 1)


def test_counts_alternate_between_the_slots() -> None:
    steps, slots = Countdown(4, 3, 2, 0), DelayedSlots()
    repeat(steps, DelayedCount(steps.active, slots), 10, None)
    assert slots.log == [
        ("send", 0, 4),
        ("send", 1, 3),
        ("receive", 0, 4),
        ("send", 0, 2),
        ("receive", 1, 3),
        ("send", 1, 0),
        ("receive", 0, 2),
        ("send", 0, 0),
        ("receive", 1, 0),
    ]


def test_the_cpu_reads_the_count_at_once() -> None:
    with running_count(torch.tensor([1])) as count:
        assert isinstance(count, CurrentCount)
        assert count.left() == 1


class FakeDevice(torch.Tensor):
    """A count that says it is on a GPU."""

    device = torch.device("cuda", 0)


class FakePinnedCounts(DelayedSlots):
    """Stands in where there is no pinned memory."""

    made = 0

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        assert device == FakeDevice.device
        type(self).made += 1
        self.followed = 0

    def follow_earlier_use(self) -> None:
        self.followed += 1


@pytest.fixture
def gpu_count(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """A count on a pretended GPU, and no slots yet."""
    monkeypatch.setattr(running, "PinnedCounts", FakePinnedCounts)
    monkeypatch.setattr(running, "_idle", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(FakePinnedCounts, "made", 0)
    return torch.tensor([1]).as_subclass(FakeDevice)


def test_slots_are_kept_and_never_shared(gpu_count: Tensor) -> None:
    with running_count(gpu_count) as outer, running_count(gpu_count) as inner:
        assert isinstance(outer, DelayedCount)
        assert isinstance(inner, DelayedCount)
        assert outer._slots is not inner._slots
    assert FakePinnedCounts.made == 2
    with pytest.raises(KeyError), running_count(gpu_count):
        raise KeyError
    with running_count(gpu_count) as again:
        assert isinstance(again, DelayedCount)
        assert again._slots.followed > 1
    assert FakePinnedCounts.made == 2
    assert len(running._idle[FakeDevice.device]) == 2


def test_a_solve_on_a_capturing_stream_is_refused(
    gpu_count: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="which a CUDA graph cannot hold"):
        running_count(gpu_count).__enter__()


@contextmanager
def _late(active: Tensor, synchronized: Ranks = False) -> Iterator[DelayedCount]:
    assert synchronized is False
    yield DelayedCount(active, DelayedSlots())


def counted(f: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    calls: list[int] = []

    def counting(z: Tensor) -> Tensor:
        calls.append(1)
        return f(z)

    return counting, calls


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("max_steps", [4, 60])
def test_late_and_present_counts_give_the_same_bits(
    solver: type[dk.Solver], backend: str, max_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Tanh.random(5, 30, 0.6)
    z0 = torch.randn(5, 30, dtype=torch.float64)
    solve = solver(max_steps=max_steps, rtol=1e-6)
    outcomes = []
    with dk.use_backend(backend):
        for late in (False, True):
            if late:
                monkeypatch.setattr(loop, "running_count", _late)
            f, calls = counted(problem)
            solution = solve(f, z0)
            last = int(solution.steps.max())
            assert len(calls) == min(last + late, max_steps)
            tensors = [solution.z, solution.trace.nan_to_num(-1.0), solution.status, solution.steps]
            if solution.inverse_jacobian is not None:
                tensors += [solution.inverse_jacobian.rmatvec(z0), solution.inverse_jacobian.rank]
            outcomes.append(tensors)
    for present, late in zip(*outcomes, strict=True):
        assert torch.equal(present, late)


def test_implicit_uses_the_same_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "running_count", _late)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    layer = dk.DEQ(
        lambda z: scale * torch.cos(z),
        solver=dk.Broyden(max_steps=60, rtol=1e-12),
        gradient=dk.Implicit(solver=dk.Broyden(max_steps=60, rtol=1e-12)),
    )
    z = layer(torch.zeros(2, 3, dtype=torch.float64))
    z.sum().backward()
    exact = 6 * torch.cos(z[0, 0]) / (1 + scale * torch.sin(z[0, 0]))
    torch.testing.assert_close(scale.grad, exact.detach(), rtol=1e-9, atol=0.0)


class FakeGraphs:
    """Captures by remembering the step, and replays by taking it."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    @contextmanager
    def step_capture(self, device: torch.device) -> Iterator[Callable[[Advance], Advance]]:
        yield self.capture

    def capture(self, advance: Advance) -> Advance:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            advance()

        return replay


def solve_with(
    f: Callable[[Tensor], Tensor], z0: Tensor, max_steps: int, *, cuda_graph: bool
) -> Tables:
    z, best = z0.clone(), torch.empty_like(z0)
    tables = Tables.new(len(z), max_steps, z.device)
    step = damped.bind_step(
        z,
        best,
        tables,
        damped.new_scratch(z),
        rtol=1e-3,
        atol=0.0,
        damping=1.0,
        stall_steps=0,
        divergence_factor=1e6,
    )
    structure = Structure.of(z0, "z0")
    loop.iterate(bind_evaluation(f, structure, z), step, tables, cuda_graph=cuda_graph)
    return tables


@pytest.mark.parametrize("late", [False, True])
def test_all_steps_but_the_first_are_replayed(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs()
    monkeypatch.setattr(loop, "step_capture", graphs.step_capture)
    if late:
        monkeypatch.setattr(loop, "running_count", _late)
    z0 = torch.randn(3, 4)
    eager = solve_with(lambda z: 0.5 * z + 1.0, z0, 50, cuda_graph=False)
    assert graphs.captured == 0
    tables = solve_with(lambda z: 0.5 * z + 1.0, z0, 50, cuda_graph=True)
    assert torch.equal(tables.counters, eager.counters)
    assert (tables.counters[:, Counter.STATUS] == Status.CONVERGED).all()
    steps = int(tables.counters[:, Counter.STEPS].max())
    assert graphs.captured == 1
    assert graphs.replayed == steps - 1 + late


def test_a_single_step_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs()
    monkeypatch.setattr(loop, "step_capture", graphs.step_capture)
    solve_with(lambda z: 0.5 * z + 1.0, torch.randn(3, 4), 1, cuda_graph=True)
    assert graphs.captured == 0
    solve_with(lambda z: z.clone(), torch.randn(3, 4), 5, cuda_graph=True)
    assert graphs.captured == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_cuda_graph_needs_a_gpu(solver: type[dk.Solver]) -> None:
    with pytest.raises(ValueError, match=r"needs a state on a CUDA device; got z0 on cpu\. Move"):
        solver(cuda_graph=True)(lambda z: 0.5 * z, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="cuda_graph must be a bool; got 1"):
        solver(cuda_graph=1)


def test_implicit_refuses_a_solver_with_cuda_graph() -> None:
    with pytest.raises(ValueError, match="Implicit's solver must have cuda_graph=False"):
        dk.Implicit(solver=dk.Broyden(cuda_graph=True))
