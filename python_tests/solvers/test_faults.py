"""An f that fails in the middle of a solve: the error says where, nothing leaks, all goes on."""

from __future__ import annotations

import gc
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels.ops import Status
from deq_kernels.ops.memory import POOLED_BYTES

BATCH = 6
AT = 4
"""The evaluation that fails, counted from 1."""

NOTE = f"Raised in evaluation {AT} of f in this solve."
WHERE = f" This was evaluation {AT} of f in this solve."

Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A solver with options of its own."""

    solver: type[dk.Solver]
    options: Options

    def make(self, **options: Any) -> dk.Solver:
        return self.solver(**{"max_steps": 30, "rtol": 1e-9, **self.options, **options})


def _ones(z: Tensor) -> Tensor:
    return torch.ones_like(z)


CASES = (
    Case(dk.Broyden, {}),
    Case(dk.Broyden, {"history_length": 3}),
    Case(dk.FixedPoint, {"max_steps": 60}),
    Case(dk.Anderson, {}),
    Case(dk.GMRES, {}),
    Case(dk.AdjointBroyden, {}),
    Case(dk.AdjointBroyden, {"opa_every": 2, "outer_gradient": _ones}),
    Case(dk.LBFGS, {}),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.solver.__name__)


def healthy(z: Tensor) -> Tensor:
    """Affine, symmetric and elementwise: for every solver, and exact about batches."""
    gain = torch.linspace(-0.5, 0.6, z.shape[1], dtype=z.dtype)
    return gain * z + 1.0


class Interrupted(Exception):
    """An error that only f knows."""


class Faulty:
    """`healthy`, but for the evaluation `AT`, which `fault` takes; keeps weak references to z."""

    def __init__(self, fault: Callable[[Tensor], Any]) -> None:
        self.fault = fault
        self.calls = 0
        self.seen: list[weakref.ref[Tensor]] = []

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(weakref.ref(z))
        f_z = healthy(z)
        self.seen.append(weakref.ref(f_z))
        return self.fault(z) if self.calls == AT else f_z


def raise_own(z: Tensor) -> Tensor:
    raise Interrupted("the cell broke", 7)


def interrupt(z: Tensor) -> Tensor:
    raise KeyboardInterrupt


def out_of_memory(z: Tensor) -> Tensor:
    return torch.empty(1 << 60)


def change_in_place(z: Tensor) -> Tensor:
    with torch.no_grad():
        return z.mul_(0.5)


FAULTS: dict[str, tuple[Callable[[Tensor], Any], type[BaseException], str]] = {
    "raises": (raise_own, Interrupted, "the cell broke"),
    "Ctrl-C": (interrupt, KeyboardInterrupt, ""),
    "out of memory": (out_of_memory, RuntimeError, "memory"),
    "shape": (lambda z: z[:, 1:], ValueError, "f must return the shape it takes, [6, 20]; got [6"),
    "batch": (lambda z: z[1:], ValueError, "f must return the shape it takes, [6, 20]; got [5"),
    "dtype": (lambda z: z.float(), TypeError, "got torch.float32 on cpu. Convert z0"),
    "integers": (lambda z: z.long(), TypeError, "got torch.int64 on cpu"),
    "device": (lambda z: z.to("meta"), TypeError, "got torch.float64 on meta"),
    "nothing": (lambda z: None, TypeError, "f(z) must be a tensor or a tuple of tensors; got None"),
    "tuple": (lambda z: (z,), TypeError, "f must return what it takes, one tensor; got a tuple"),
    "in place": (change_in_place, RuntimeError, "it changed z in place"),
}
OURS = {"shape", "batch", "dtype", "integers", "device", "nothing", "tuple", "in place"}
every_fault = pytest.mark.parametrize("fault", FAULTS)


def start(dim: int = 20) -> Tensor:
    return torch.linspace(-1, 1, BATCH * dim, dtype=torch.float64).view(BATCH, dim)


def bits(solution: dk.Solution) -> list[Tensor]:
    assert isinstance(solution.z, Tensor)
    out = [solution.z, solution.trace.nan_to_num(-1.0), solution.status, solution.steps]
    if solution.inverse_jacobian is not None:
        out.append(solution.inverse_jacobian.rmatvec(torch.ones_like(solution.z)))
    return out


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@every_fault
@every_case
def test_the_error_names_the_evaluation(case: Case, fault: str) -> None:
    inject, kind, message = FAULTS[fault]
    solver = case.make()
    expected = bits(solver(healthy, start()))
    f = Faulty(inject)
    with pytest.raises(kind) as raised:
        solver(f, start())
    assert f.calls == AT
    text = str(raised.value)
    assert message in text
    notes = getattr(raised.value, "__notes__", [])
    if fault in OURS:
        assert text.endswith(WHERE)
        assert notes == []
    else:
        assert WHERE not in text
        assert notes == ([NOTE] if sys.version_info >= (3, 11) else [])
        assert type(raised.value) is kind
    if kind is Interrupted:
        assert raised.value.args == ("the cell broke", 7)
    assert_same_bits(bits(solver(healthy, start())), expected)


def fail(solver: dk.Solver, inject: Callable[[Tensor], Any], z0: Tensor) -> Faulty:
    """Solve, swallow the error, and return the f, which holds nothing but weak references."""
    f = Faulty(inject)
    try:
        solver(f, z0)
    except BaseException:
        return f
    raise AssertionError("nothing was raised")


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Without Python's garbage collector: what is freed is freed at once, by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@every_fault
@every_case
def test_no_tensor_outlives_the_error(case: Case, fault: str) -> None:
    f = fail(case.make(), FAULTS[fault][0], start())
    assert len(f.seen) == 2 * AT
    assert [ref() for ref in f.seen] == [None] * (2 * AT)


@pytest.fixture
def plain_memory() -> Iterator[None]:
    """Memory as users have it; filled with NaN it would not come from the pool."""
    torch.use_deterministic_algorithms(False)
    dk.empty_cache()
    yield
    dk.empty_cache()


@pytest.mark.usefixtures("plain_memory")
@pytest.mark.parametrize("fault", ["raises", "Ctrl-C", "shape"])
@pytest.mark.parametrize("solver", [dk.Broyden, dk.Anderson])
def test_the_history_goes_back_to_its_pool(solver: type[dk.Solver], fault: str) -> None:
    """As many bytes are in the pool after a solve that failed as after one that did not."""
    dim = POOLED_BYTES // 8 // BATCH
    kept = []
    for inject in (None, FAULTS[fault][0], FAULTS[fault][0]):
        solve = solver(max_steps=8, rtol=1e-9)
        if inject is None:
            solve(healthy, start(dim))
        else:
            fail(solve, inject, start(dim))
        kept.append(dk.empty_cache())
    assert kept[0] > 0
    assert kept == kept[:1] * 3


@pytest.mark.parametrize("fault", ["raises", "shape"])
@every_case
def test_failed_solves_leave_no_python_memory(case: Case, fault: str) -> None:
    """A leak would grow in every round; what Python keeps for reuse stops growing."""
    solver = case.make()

    def growth() -> int:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(10):
            fail(solver, FAULTS[fault][0], start())
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    fail(solver, FAULTS[fault][0], start())
    tracemalloc.start()
    try:
        rounds = [growth()]
        # Below the size of one small object per solve.
        while rounds[-1] >= 10 * 48 and len(rounds) < 20:
            rounds.append(growth())
        assert rounds[-1] < 10 * 48, rounds
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("compact", [False, True])
@every_case
def test_nan_stays_with_its_samples(case: Case, at: int, compact: bool) -> None:
    """The trace names evaluation and sample; the others do not notice, bit for bit."""
    if compact and case.solver.differentiates:
        pytest.skip("refuses compact")
    solver = case.make(compact=compact, rtol=1e-6)
    broken = [1, 4]
    calls = 0

    def f(z: Tensor, name: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        hit = (name == broken[0]) | (name == broken[1])
        bad = hit if calls == at else torch.zeros_like(hit)
        return torch.where(bad[:, None], torch.nan, healthy(z))

    names = torch.arange(BATCH)
    clean = solver(dk.PerSample(lambda z, name: healthy(z), names), start())
    solution = solver(dk.PerSample(f, names), start())
    others = [0, 2, 3, 5]
    for now, before in zip(bits(solution), bits(clean), strict=True):
        assert torch.equal(now[others], before[others])
    assert isinstance(solution.z, Tensor)
    assert solution.z.isfinite().all()
    for sample in broken:
        if clean.steps[sample] < at:  # it had stopped before
            assert torch.equal(
                solution.trace[sample].nan_to_num(), clean.trace[sample].nan_to_num()
            )
            continue
        assert solution.trace[sample, at - 1].isnan()
        if at == 1:
            assert solution.status[sample] == Status.DIVERGED
        else:
            assert solution.steps[sample] >= at
            assert solution.residual[sample].isfinite()


def test_an_error_of_an_inner_solve_names_both() -> None:
    """The message keeps the evaluation of the solve that found the fault."""

    def nested(z: Tensor) -> Tensor:
        return dk.Broyden(max_steps=9)(Faulty(FAULTS["shape"][0]), z).z

    with pytest.raises(ValueError, match=r"evaluation 4 of f in this solve\.") as raised:
        dk.FixedPoint(max_steps=9)(nested, start())
    if sys.version_info >= (3, 11):
        assert raised.value.__notes__ == ["Raised in evaluation 1 of f in this solve."]


def test_errors_after_compaction_say_so() -> None:
    gain = torch.tensor([0.0] * 5 + [0.6], dtype=torch.float64)[:, None]

    def f(z: Tensor, gain: Tensor) -> Tensor:
        if len(z) == 1:
            raise Interrupted("one left")
        return gain * z + 1.0

    solver = dk.FixedPoint(max_steps=50, compact=True)
    with pytest.raises(Interrupted, match="one left") as raised:
        solver(dk.PerSample(f, gain), start())
    if sys.version_info >= (3, 11):
        (note,) = raised.value.__notes__
        assert note.startswith("Raised in evaluation 3 of f in this solve, on 1 of its 6 samples")


@pytest.mark.parametrize("fault", ["raises", "shape", "device"])
def test_a_layer_is_usable_after_a_fault(fault: str) -> None:
    inject, kind, _ = FAULTS[fault]
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    faulty: list[Faulty] = []

    def cell(z: Tensor) -> Tensor:
        return (faulty[-1] if faulty else healthy)(weight * z)

    layer = dk.DEQ(cell, solver=dk.Broyden(max_steps=30, rtol=1e-9))
    gradients = []
    for broken in (False, True, False):
        weight.grad = None
        if broken:
            faulty.append(Faulty(inject))
            with pytest.raises(kind, match="evaluation 4" if fault != "raises" else "broke"):
                layer(start())
            faulty.clear()
            continue
        layer(start()).sum().backward()
        gradients.append(weight.grad)
    assert torch.equal(gradients[0], gradients[1])
