"""Steps captured into a CUDA graph once per solve, and replayed.

`torch.cuda.graph` synchronises the device and empties torch's cache before each capture, which
costs more than many a solve. Here a capture begins at once, on a stream of the calling thread's own
on which the first step has run already, so that libraries have set themselves up outside of it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Advance = Callable[[], None]

_THREAD_LOCAL_MODE = 1
"""cudaStreamCaptureModeThreadLocal: what other threads do meanwhile does not end the capture."""


class Recorder:
    """Captures the steps of one thread's solves on one device.

    All captures share one pool of device memory, in which the evaluation of f works. The pool lives
    as long as one of its graphs, so the last graph is kept until the next takes its place: a pool
    of its own for each graph would be allocated anew in every solve and not be reused.

    Args:
        stream: captured; not the default stream.
        new_graph: makes an empty graph.
        new_pool: makes the handle of a new pool.
    """

    def __init__(
        self,
        stream: Any,
        new_graph: Callable[[], Any] = torch.cuda.CUDAGraph,
        new_pool: Callable[[], Any] = torch.cuda.graph_pool_handle,
    ) -> None:
        self.stream = stream
        self._new_graph = new_graph
        self._new_pool = new_pool
        self._pool = new_pool()
        self._last_graph: Any = None

    def capture(self, advance: Advance) -> Advance:
        """A function that replays what `advance` enqueues on the stream; nothing runs yet.

        Raises:
            RuntimeError: `advance` did what a graph cannot hold.
        """
        graph = self._new_graph()
        with _one_at_a_time, _no_collection():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                advance()
            except BaseException as error:
                valid = self._leave(graph)
                if isinstance(error, RuntimeError) and not (valid and _is_the_callers(error)):
                    raise _refusal(error) from error
                raise
            try:
                graph.capture_end()
            except RuntimeError as error:
                self._clear(graph)
                raise _refusal(error) from error
            self._last_graph = graph
        replay: Advance = graph.replay
        return replay

    def _leave(self, graph: Any) -> bool:
        """End a capture in which an error was raised; returns whether CUDA still held it valid."""
        try:
            with _quiet_about_empty_graphs():
                graph.capture_end()
        except RuntimeError:
            self._clear(graph)
            return False
        self._forget(graph)
        return True

    def _clear(self, graph: Any) -> None:
        """Bring torch out of a capture that CUDA has ended with an error.

        torch tidies up after a capture (its allocators' pools, its random numbers) only where CUDA
        ends it without an error. So an empty capture is begun in its place, for torch to end.
        """
        try:
            _begin_capture(self.stream)
            with _quiet_about_empty_graphs():
                graph.capture_end()
        except (AttributeError, OSError, RuntimeError) as error:
            raise RuntimeError(
                "The capture of a CUDA graph failed, and so did leaving it: torch's memory and "
                f"random numbers on {self.stream.device} may not work any more ({error}). "
                "Restart the process, with cuda_graph=False."
            ) from error
        self._forget(graph)

    def _forget(self, graph: Any) -> None:
        # The pool may have had no other graph, and a pool without graphs cannot be used again.
        graph.reset()
        self._pool, self._last_graph = self._new_pool(), None


_one_at_a_time = threading.Lock()
"""torch's random numbers know of one capture at a time in a process."""


def _open_in_child() -> None:
    # A forked child has neither captures nor the thread that may have held the lock.
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_open_in_child)


def _is_the_callers(error: RuntimeError) -> bool:
    """Whether an error is f's own, and would have come outside of a capture too."""
    return not isinstance(error, torch.AcceleratorError) and "captur" not in str(error)


def _refusal(error: Exception) -> RuntimeError:
    return RuntimeError(
        "cuda_graph=True needs an f that only enqueues work on the GPU, the same in every "
        f"evaluation, but its second evaluation could not be captured: {error}\n"
        "f must not wait for the device: no .item(), .tolist(), .cpu() or print of a tensor, no "
        "`if` on its values, no shape that depends on them, no copy from unpinned memory. The "
        "step must not either; the PyTorch reference does, so a compiled or Triton backend has to "
        "serve the GPU (`deq-kernels info`). Change f, or leave cuda_graph out."
    )


def _begin_capture(stream: Any) -> None:
    # The library depends on the CUDA runtime that torch uses, whatever its file is called.
    runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10_cuda.so"))
    status = runtime.cudaStreamBeginCapture(
        ctypes.c_void_p(stream.cuda_stream), ctypes.c_int(_THREAD_LOCAL_MODE)
    )
    if status != 0:
        raise RuntimeError(f"cudaStreamBeginCapture returned {status}")


@contextmanager
def _quiet_about_empty_graphs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        yield


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from freeing garbage: a graph or an event among it would end a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_of_thread = threading.local()


def _recorders() -> dict[torch.device, Recorder]:
    recorders: dict[torch.device, Recorder] = _of_thread.__dict__.setdefault("recorders", {})
    return recorders


@contextmanager
def step_capture(device: torch.device) -> Iterator[Callable[[Advance], Advance]]:
    """Run the block on the thread's capture stream of a CUDA device; yields what captures there.

    The stream follows the current one, which in turn waits for it at the end: to the caller all
    work is on the current stream. Tensors made before may be used, and tensors made inside may be
    kept.
    """
    recorders = _recorders()
    if device not in recorders:
        recorders[device] = Recorder(torch.cuda.Stream(device))
    recorder = recorders[device]
    outside = torch.cuda.current_stream(device)
    recorder.stream.wait_stream(outside)
    try:
        with torch.cuda.stream(recorder.stream):
            yield recorder.capture
    finally:
        outside.wait_stream(recorder.stream)


def forget_captures() -> None:
    """Let go of the calling thread's last graphs, and of the device memory they work in."""
    with _one_at_a_time:
        _recorders().clear()
