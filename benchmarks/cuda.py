"""An NVIDIA GPU as a device to measure on."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .broyden.cases import Case
from .broyden.problem import make_problem
from .device import Ceiling, Device
from .device_copy import DeviceCopy
from .gpu_machine import describe_gpu_machine, describe_gpu_versions

if TYPE_CHECKING:
    from .broyden.providers import SolveProvider

# Long enough for the host to queue what is timed, short against it.
_HEAD_START_CYCLES = 200_000
_WARM_UP = Case(2, 256, 3)
# What the profiler calls that which is no kernel.
_TRANSFERS = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Recording:
    """A CUDA graph, called to replay it.

    Attributes:
        graph: what was recorded.
        run: what was recorded from; it holds the tensors whose addresses the graph has.
    """

    graph: torch.cuda.CUDAGraph
    run: Callable[[], None]

    def __call__(self) -> None:
        self.graph.replay()


class Cuda(Device):
    """The current CUDA device; CUDA_VISIBLE_DEVICES chooses another.

    Raises:
        ValueError: torch cannot use a GPU in this process.
    """

    name = "cuda"
    ceiling: Ceiling = "copy"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError(
                "device cuda needs a GPU that torch can use, but torch.cuda.is_available() is "
                f"False (torch {torch.__version__}, built for CUDA {torch.version.cuda}); install "
                "a CUDA build of torch and NVIDIA's driver, or measure with --device cpu"
            )
        self.torch_device = torch.device("cuda", torch.cuda.current_device())

    def solve_clock(self, call: Callable[[], object], repeats: int) -> float:
        """The wall's clock, each call from an idle device to an idle device.

        A solve whose loop runs ahead of the device would otherwise be charged to the next one.
        """
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        for _ in range(repeats):
            call()
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - start) / repeats * 1e-9

    def device_clock(self, call: Callable[[], object], repeats: int) -> float:
        """The time between two events on the device, with all calls queued before the first."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HEAD_START_CYCLES)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats * 1e-3

    def bandwidth(self, dtype: torch.dtype) -> DeviceCopy:
        return DeviceCopy(self.torch_device, dtype=dtype)

    def cache_bytes(self) -> int | None:
        size: int = torch.cuda.get_device_properties(self.torch_device).L2_cache_size
        return size

    def describe(self) -> dict[str, str | int | None]:
        return describe_gpu_machine(self.torch_device)

    def versions(self) -> dict[str, str | None]:
        return describe_gpu_versions()

    def why_no_memory(self) -> str | None:
        return None

    def peak_solver_bytes(
        self, provider: "SolveProvider", case: Case, *, dtype: torch.dtype
    ) -> int:
        """Growth of the memory that torch's allocator has allocated.

        The library of matrix products takes its workspace in the warm-up. The second of two solves
        is measured, against what was in use before the first: what a provider keeps from one solve
        to the next counts, what compiling it took does not.
        """
        solve = provider.load(self.name)
        with torch.no_grad(), provider.context():
            warm_up = make_problem(_WARM_UP, dtype=dtype, device=self.torch_device)
            solve(warm_up.f, warm_up.z0, _WARM_UP.steps)
            problem = make_problem(case, dtype=dtype, device=self.torch_device)
            _settle()
            before = torch.cuda.memory_allocated()
            for _ in range(2):
                _settle()
                torch.cuda.reset_peak_memory_stats()
                solve(problem.f, problem.z0, case.steps)
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before

    def launches(self, call: Callable[[], object]) -> tuple[str, ...] | None:
        """What torch's profiler sees; None where it may not look."""
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        on_device = (
            event.name
            for event in profile.events() or ()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        kernels = tuple(name for name in on_device if not name.startswith(_TRANSFERS))
        return kernels or None

    def capture(self, run: Callable[[], None]) -> Recording:
        """Record a CUDA graph of ``run``, after one run that loads its kernels."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return Recording(graph, run)


def _settle() -> None:
    gc.collect()
    torch.cuda.synchronize()
