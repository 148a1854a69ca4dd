"""Steps captured into a CUDA graph once per solve, and replayed.

`torch.cuda.graph` synchronises the device and empties torch's cache before each capture, which
costs more than many a solve. Here a capture begins at once, on a stream of the calling thread's own
on which the first step has run already, so that libraries have set themselves up outside of it.
The stream is none of the 32 that `torch.cuda.Stream()` hands out in turn: work of
other users of it would be captured too.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from deq_kernels.ops import memory

Advance = Callable[[], None]

_THREAD_LOCAL_MODE = 1
"""cudaStreamCaptureModeThreadLocal: what other threads do meanwhile does not end the capture."""

_NON_BLOCKING = 1
"""cudaStreamNonBlocking: the stream does not wait for the legacy default stream, as torch's."""


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

        How much of it torch has forgotten by the time it raises depends on its version: nothing;
        the graph, but not that memory comes from its pool; or all of it. What remains keeps others
        from capturing into the pool. Then an empty capture is begun in place of the failed one, for
        torch to end; where it has ended everything, ending it twice would upset its counts.
        """
        try:
            if not self._can_capture(self._pool):
                self._end_in_its_place(graph)
            if not self._can_capture(self._new_pool()):
                raise RuntimeError("an empty graph cannot be captured either")
        except (AttributeError, OSError, RuntimeError) as error:
            raise RuntimeError(
                "The capture of a CUDA graph failed, and so did leaving it: torch's memory and "
                f"random numbers on {self.stream.device} may not work any more ({error}). "
                "Restart the process, with cuda_graph=False."
            ) from error
        self._forget(graph)

    def _can_capture(self, pool: Any) -> bool:
        """Capture nothing with a graph of its own, which also puts the random numbers right."""
        trial = self._new_graph()
        try:
            with _quiet_about_empty_graphs():
                trial.capture_begin(pool=pool, capture_error_mode="thread_local")
                trial.capture_end()
        except RuntimeError:
            return False
        trial.reset()
        return True

    def _end_in_its_place(self, graph: Any) -> None:
        _begin_capture(self.stream)
        try:
            with _quiet_about_empty_graphs():
                graph.capture_end()
        except RuntimeError:
            _end_capture(self.stream)
            _end_allocation(self.stream.device, self._pool)
            # The allocator of pinned memory goes on asking the graph whether it is being captured.
            _half_forgotten.append(graph)

    def _forget(self, graph: Any) -> None:
        # The pool may have had no other graph, and a pool without graphs cannot be used again.
        graph.reset()
        self._pool, self._last_graph = self._new_pool(), None


_half_forgotten: list[Any] = []
"""Graphs that one version of torch refers to for good once their capture has failed."""

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


def _call_runtime(name: str, *arguments: Any) -> None:
    """Call a function of the CUDA runtime that torch uses, whatever its file is called.

    Raises:
        AttributeError, OSError: there is no such function, or no CUDA in this torch.
        RuntimeError: it did not return cudaSuccess.
    """
    # A library is searched together with those that it depends on.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10_cuda.so"))
    status = getattr(library, name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


def _begin_capture(stream: Any) -> None:
    _call_runtime(
        "cudaStreamBeginCapture",
        ctypes.c_void_p(stream.cuda_stream),
        ctypes.c_int(_THREAD_LOCAL_MODE),
    )


def _end_capture(stream: Any) -> None:
    """End a capture that was begun by hand, if torch has not ended it."""
    handle, capturing = ctypes.c_void_p(stream.cuda_stream), ctypes.c_int(0)
    _call_runtime("cudaStreamIsCapturing", handle, ctypes.byref(capturing))
    if capturing.value != 0:
        graph = ctypes.c_void_p()
        _call_runtime("cudaStreamEndCapture", handle, ctypes.byref(graph))
        _call_runtime("cudaGraphDestroy", graph)


def _end_allocation(device: torch.device, pool: Any) -> None:
    """Let torch take memory from elsewhere than a pool that it was capturing into."""
    torch._C._cuda_endAllocateToPool(device.index, pool)


def _new_stream(device: torch.device) -> Any:
    handle = ctypes.c_void_p()
    try:
        with torch.cuda.device(device):
            _call_runtime(
                "cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING)
            )
    except (AttributeError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"cuda_graph=True captures on a stream of its own, but none could be made on {device}: "
            f"{error}. Leave cuda_graph out."
        ) from error
    return torch.cuda.ExternalStream(handle.value, device=device)


_idle_streams: dict[torch.device, deque[Any]] = {}
"""Streams of threads that have ended. Never destroyed: torch keeps memory under their names."""


def _new_recorder(device: torch.device) -> Recorder:
    """A recorder on a stream that no other has, for as long as the recorder lives."""
    idle = _idle_streams.setdefault(device, deque())
    try:
        stream = idle.pop()
    except IndexError:  # none is idle; a thread may have taken the last one just now
        stream = _new_stream(device)
    recorder = Recorder(stream)
    weakref.finalize(recorder, idle.append, stream).atexit = False
    return recorder


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
        recorders[device] = _new_recorder(device)
    recorder = recorders[device]
    outside = torch.cuda.current_stream(device)
    recorder.stream.wait_stream(outside)
    try:
        with torch.cuda.stream(recorder.stream):
            yield recorder.capture
    finally:
        outside.wait_stream(recorder.stream)


def empty_cache() -> int:
    """Give the memory of finished solves back.

    The CPU library keeps the buffers of finished solver histories for the next solve, never more
    than were once in use together; they go back to the operating system. The device memory that
    solves of the calling thread with `cuda_graph=True` keep goes back to torch, whose
    `torch.cuda.empty_cache` then returns it to the device.

    Returns:
        How many bytes were given back to the operating system; 0 where there is no CPU library.
    """
    with _one_at_a_time:
        _recorders().clear()
    return memory.empty_cache()
