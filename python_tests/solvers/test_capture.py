"""What a capture does around torch's graphs, with graphs that only keep a record."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import deq_kernels as dk
from deq_kernels.solvers import capture
from deq_kernels.solvers.capture import Recorder

INVALID = "operation failed due to a previous error during capture"


class FakeStream:
    device = torch.device("cuda", 0)
    cuda_stream = 17


class FakeGraph:
    """Counts as CUDA does: an invalid capture ends with an error, and only an empty one can follow.

    Attributes:
        log: what was done with the graph.
        invalid: whether CUDA has declared the capture invalid.
    """

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.invalid = False

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.log.append(("begin", pool))

    def capture_end(self) -> None:
        self.log.append("end")
        if self.invalid:
            raise RuntimeError(INVALID)

    def replay(self) -> None:
        self.log.append("replay")

    def reset(self) -> None:
        self.log.append("reset")


class Setting:
    """A recorder over fake graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[FakeGraph] = []
        self.pools = 0
        self.begun_by_hand = 0
        self.recorder = Recorder(FakeStream(), self._graph, self._pool)
        monkeypatch.setattr(capture, "_begin_capture", self._begin)

    def _graph(self) -> FakeGraph:
        self.graphs.append(FakeGraph())
        return self.graphs[-1]

    def _pool(self) -> int:
        self.pools += 1
        return self.pools

    def _begin(self, stream: FakeStream) -> None:
        assert stream is self.recorder.stream
        self.begun_by_hand += 1
        self.graphs[-1].invalid = False


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(monkeypatch)


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
    assert setting.begun_by_hand == 0
    assert gc.isenabled()


def test_what_a_graph_cannot_hold_is_refused_with_advice(setting: Setting) -> None:
    def waits() -> None:
        setting.graphs[-1].invalid = True
        raise torch.AcceleratorError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match=r"only enqueues work .* not permitted") as caught:
        setting.recorder.capture(waits)
    assert "no .item()" in str(caught.value)
    assert "leave cuda_graph out" in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.AcceleratorError)
    # torch ends an empty capture, so that it leaves the capture behind, and the pool is not reused.
    assert setting.begun_by_hand == 1
    assert setting.graphs[0].log == [("begin", 1), "end", "end", "reset"]
    assert setting.recorder._last_graph is None
    setting.recorder.capture(lambda: None)
    assert setting.graphs[1].log[0] == ("begin", 2)


def test_an_error_that_f_swallowed_is_refused_too(setting: Setting) -> None:
    def waits_and_hides_it() -> None:
        setting.graphs[-1].invalid = True

    with pytest.raises(RuntimeError, match=INVALID):
        setting.recorder.capture(waits_and_hides_it)
    assert setting.begun_by_hand == 1
    assert setting.graphs[0].log == [("begin", 1), "end", "end", "reset"]


def test_torchs_own_refusals_are_explained(setting: Setting) -> None:
    def draws() -> None:
        raise RuntimeError("generator must be registered before the capture")

    with pytest.raises(RuntimeError, match="only enqueues work"):
        setting.recorder.capture(draws)
    assert setting.begun_by_hand == 0


def test_a_capture_that_cannot_be_left_says_so(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(stream: FakeStream) -> None:
        raise OSError("libc10_cuda.so: cannot open shared object file")

    def waits() -> None:
        setting.graphs[-1].invalid = True
        raise torch.AcceleratorError("not permitted")

    monkeypatch.setattr(capture, "_begin_capture", fails)
    with pytest.raises(RuntimeError, match=r"so did leaving it: .*libc10_cuda.*Restart"):
        setting.recorder.capture(waits)


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
