"""What a capture does around torch's graphs, with graphs that only keep a record."""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import deq_kernels as dk
from deq_kernels.solvers.machinery import capture
from deq_kernels.solvers.machinery.capture import Recorder, step_capture

INVALID = "operation failed due to a previous error during capture"


class FakeStream:
    device = torch.device("cuda", 0)
    cuda_stream = 17


ORDERS = ("nothing", "graph", "memory", "all")
"""What versions of torch have forgotten of a failed capture when they raise: nothing; the graph;
the graph and where its memory comes from, but not that random numbers are captured; all of it."""


class FakeTorch:
    """What torch and CUDA know of captures.

    Attributes:
        forgets: one of ORDERS.
        valid: of the capture under way, None where there is none.
        graphs: those that torch holds for being captured.
        pools: those that memory is taken from.
        counted: captures that the allocator has counted and not yet seen ended.
        random: whether random numbers are captured.
    """

    def __init__(self, forgets: str) -> None:
        self.forgets = forgets
        self.valid: bool | None = None
        self.graphs: set[Any] = set()
        self.pools: set[Any] = set()
        self.counted = 0
        self.random = False

    def at_rest(self) -> bool:
        return self.valid is None and not (self.graphs or self.pools or self.counted or self.random)

    def begin(self) -> None:
        if self.valid is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.valid = True

    def end(self) -> bool:
        """Whether it was a valid one."""
        valid, self.valid = self.valid, None
        return bool(valid)


class FakeGraph:
    """A graph of torch's.

    Attributes:
        log: what was done with the graph.
    """

    def __init__(self, fake: FakeTorch) -> None:
        self.log: list[Any] = []
        self.fake = fake
        self.pool: Any = None

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.log.append(("begin", pool))
        self.fake.random = True
        if pool in self.fake.pools:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.fake.pools.add(pool)
        self.fake.counted += 1
        self.fake.begin()
        self.fake.graphs.add(self)
        self.pool = pool

    def capture_end(self) -> None:
        self.log.append("end")
        valid = self.fake.end()
        if not valid and self.fake.forgets == "nothing":
            raise RuntimeError(INVALID)
        if self.fake.forgets == "all":
            self.fake.counted -= 1
        if self not in self.fake.graphs:
            raise RuntimeError("capture_end() called before capture_begin().")
        self.fake.graphs.discard(self)
        if self.fake.forgets != "all":
            self.fake.counted -= 1
        if not valid and self.fake.forgets == "graph":
            raise RuntimeError(INVALID)
        self.fake.pools.remove(self.pool)
        if not valid and self.fake.forgets == "memory":
            raise RuntimeError(INVALID)
        self.fake.random = False
        if not valid:
            raise RuntimeError(INVALID)

    def replay(self) -> None:
        self.log.append("replay")

    def reset(self) -> None:
        self.log.append("reset")


class Setting:
    """A recorder over fake graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, forgets: str) -> None:
        self.fake = FakeTorch(forgets)
        self.graphs: list[FakeGraph] = []
        self.number_of_pools = 0
        self.recorder = Recorder(FakeStream(), self._graph, self._pool)
        monkeypatch.setattr(capture, "_begin_capture", self._begin)
        monkeypatch.setattr(capture, "_end_capture", self._end)
        monkeypatch.setattr(capture, "_end_allocation", self._end_allocation)
        monkeypatch.setattr(capture, "_half_forgotten", [])

    def invalidate(self) -> None:
        """What CUDA does where a capture cannot hold an operation."""
        self.fake.valid = False

    def _graph(self) -> FakeGraph:
        self.graphs.append(FakeGraph(self.fake))
        return self.graphs[-1]

    def _pool(self) -> int:
        self.number_of_pools += 1
        return self.number_of_pools

    def _begin(self, stream: FakeStream) -> None:
        assert stream is self.recorder.stream
        self.fake.begin()

    def _end(self, stream: FakeStream) -> None:
        assert stream is self.recorder.stream
        self.fake.valid = None

    def _end_allocation(self, device: torch.device, pool: Any) -> None:
        assert device == FakeStream.device
        self.fake.pools.remove(pool)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(monkeypatch, "nothing")


def test_a_capture_enqueues_once_and_replays_as_often_as_asked(setting: Setting) -> None:
    enqueued = []
    replay = setting.recorder.capture(lambda: enqueued.append(gc.isenabled()))
    assert enqueued == [False]
    assert gc.isenabled()
    replay()
    replay()
    assert enqueued == [False]
    assert setting.graphs[0].log == [("begin", 1), "end", "replay", "replay"]


def test_captures_share_a_pool_that_always_has_a_graph(setting: Setting) -> None:
    for _ in range(2):
        setting.recorder.capture(lambda: None)
        assert setting.recorder._last_graph is setting.graphs[-1]
    assert [graph.log[0] for graph in setting.graphs] == [("begin", 1), ("begin", 1)]


@pytest.mark.parametrize("error", [ValueError("shapes differ"), RuntimeError("the cell broke")])
def test_an_error_of_f_itself_passes_through(setting: Setting, error: Exception) -> None:
    def broken() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)) as caught:
        setting.recorder.capture(broken)
    assert caught.value is error
    assert setting.graphs[0].log == [("begin", 1), "end", "reset"]
    assert setting.fake.at_rest()
    assert gc.isenabled()


def test_what_a_graph_cannot_hold_is_refused_with_advice(setting: Setting) -> None:
    def waits() -> None:
        setting.invalidate()
        raise torch.AcceleratorError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match=r"only enqueues work .* not permitted") as caught:
        setting.recorder.capture(waits)
    assert "no .item()" in str(caught.value)
    assert "leave cuda_graph out" in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.AcceleratorError)


@pytest.mark.parametrize("forgets", ORDERS)
def test_torch_is_brought_out_of_a_failed_capture(
    forgets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it has forgotten by itself, it is at rest afterwards and captures again."""
    setting = Setting(monkeypatch, forgets)
    setting.recorder.capture(lambda: None)
    with pytest.raises(RuntimeError, match=INVALID):
        setting.recorder.capture(setting.invalidate)  # by an error that f has swallowed
    assert setting.fake.at_rest()
    failed = setting.graphs[1]
    assert failed.log[-1] == "reset"
    # It is told again where it has not heard, and kept where it will go on being asked.
    assert failed.log.count("end") == (2 if forgets in ("nothing", "graph") else 1)
    assert capture._half_forgotten == ([failed] if forgets == "graph" else [])
    # A pool without graphs cannot be used again.
    assert setting.recorder._last_graph is None
    used = [entry[1] for graph in setting.graphs for entry in graph.log if entry[0] == "begin"]
    setting.recorder.capture(lambda: None)
    assert setting.graphs[-1].log[0][1] not in used
    assert setting.fake.at_rest()


def test_torchs_own_refusals_are_explained(setting: Setting) -> None:
    def draws() -> None:
        raise RuntimeError("generator must be registered before the capture")

    with pytest.raises(RuntimeError, match="only enqueues work"):
        setting.recorder.capture(draws)
    assert setting.graphs[0].log == [("begin", 1), "end", "reset"]
    assert setting.fake.at_rest()


def test_a_capture_that_cannot_be_left_says_so(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(stream: FakeStream) -> None:
        raise OSError("libc10_cuda.so: cannot open shared object file")

    monkeypatch.setattr(capture, "_begin_capture", fails)
    with pytest.raises(RuntimeError, match=r"so did leaving it: .*libc10_cuda.*Restart"):
        setting.recorder.capture(setting.invalidate)


def test_a_device_that_captures_no_more_is_no_success(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the device's own outlives the capture."""

    def breaks() -> None:
        setting.invalidate()

        def refuses(graph: FakeGraph, pool: Any, capture_error_mode: str) -> None:
            raise RuntimeError("an illegal memory access was encountered")

        monkeypatch.setattr(FakeGraph, "capture_begin", refuses)

    with pytest.raises(RuntimeError, match=r"so did leaving it: .*empty graph.*Restart"):
        setting.recorder.capture(breaks)


def test_interruptions_end_the_capture(setting: Setting) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setting.recorder.capture(interrupted)
    assert setting.graphs[0].log == [("begin", 1), "end", "reset"]


def test_empty_cache_forgets_the_captures_of_this_thread(setting: Setting) -> None:
    capture._recorders()[torch.device("cuda", 0)] = setting.recorder
    dk.empty_cache()
    assert capture._recorders() == {}


class FakeRuntime:
    """Makes streams in place of CUDA, and stands for torch's functions around them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self.status = 0
        outside = FakeExternalStream(0, torch.device("cuda", 0))
        monkeypatch.setattr(capture, "_call_runtime", self._call)
        monkeypatch.setattr(capture, "_idle_streams", {})
        monkeypatch.setattr(capture, "_of_thread", threading.local())
        monkeypatch.setattr(torch.cuda, "Stream", _draws_from_the_pool)
        monkeypatch.setattr(torch.cuda, "ExternalStream", FakeExternalStream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: outside)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(Recorder, "__init__", _with_a_stream_alone)

    def _call(self, name: str, handle: Any, flags: ctypes.c_uint) -> None:
        assert (name, flags.value) == ("cudaStreamCreateWithFlags", 1)
        if self.status != 0:
            raise RuntimeError(f"{name} returned {self.status}")
        self.made += 1
        handle._obj.value = self.made


class FakeExternalStream:
    def __init__(self, handle: int, device: torch.device) -> None:
        self.cuda_stream = handle
        self.device = device

    def wait_stream(self, other: FakeExternalStream) -> None:
        assert other is not self


def _draws_from_the_pool(*_: Any, **__: Any) -> None:
    raise AssertionError("the pool of streams is for users")


def _with_a_stream_alone(recorder: Recorder, stream: Any) -> None:
    recorder.stream = stream


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return FakeRuntime(monkeypatch)


def _stream_of_a_solve() -> int:
    device = torch.device("cuda", 0)
    with step_capture(device):
        handle: int = capture._recorders()[device].stream.cuda_stream
        return handle


def test_captures_draw_no_stream_from_the_pool(runtime: FakeRuntime) -> None:
    assert [_stream_of_a_solve() for _ in range(3)] == [1, 1, 1]
    assert runtime.made == 1


def test_threads_have_streams_of_their_own_and_leave_them_behind(runtime: FakeRuntime) -> None:
    both = threading.Barrier(2, timeout=60)

    def solve(seen: list[int]) -> None:
        seen.append(_stream_of_a_solve())
        both.wait()

    for _ in range(2):
        seen: list[int] = []
        threads = [threading.Thread(target=solve, args=(seen,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == [1, 2]
    assert runtime.made == 2


def test_a_stream_that_cannot_be_made_is_an_error(runtime: FakeRuntime) -> None:
    runtime.status = 2
    with pytest.raises(RuntimeError, match=r"none could be made on cuda:0: .*returned 2\. Leave"):
        _stream_of_a_solve()
