"""The GPU as a device to measure on, against a torch.cuda that only notes what it is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import cuda, gpu_machine
from benchmarks.broyden import plain_pytorch
from benchmarks.broyden.cases import Case
from benchmarks.broyden.problem import make_problem
from benchmarks.broyden.providers import PROVIDERS, SolveProvider
from benchmarks.cuda import Cuda
from benchmarks.device import find_device
from benchmarks.device_copy import DeviceCopy
from benchmarks.provider import ProviderAbsentError, find_provider

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=150_000_000_000,
    L2_cache_size=62_914_560,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch.cuda is asked, in order."""
    notes: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            notes.append("record")

        def synchronize(self) -> None:
            notes.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 12.0  # milliseconds

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            notes.append("wait stream")

    class Graph:
        def replay(self) -> None:
            notes.append("replay")

    @contextmanager
    def on_stream(stream: Stream) -> Iterator[None]:
        notes.append("side stream")
        yield
        notes.append("main stream")

    @contextmanager
    def record(graph: Graph) -> Iterator[None]:
        notes.append("capture")
        yield
        notes.append("captured")

    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda device: H200,
        "synchronize": lambda: notes.append("synchronize"),
        "_sleep": lambda cycles: notes.append("sleep"),
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": on_stream,
        "CUDAGraph": Graph,
        "graph": record,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return notes


@pytest.fixture
def device(asked: list[str]) -> Cuda:
    found = find_device("cuda")
    assert isinstance(found, Cuda)
    assert found.torch_device == torch.device("cuda", 0)
    found.torch_device = torch.device("cpu")  # where this machine can hold tensors
    return found


def test_a_solve_is_timed_from_idle_to_idle(device: Cuda, asked: list[str]) -> None:
    seconds = device.solve_clock(lambda: asked.append("call"), 2)
    assert asked == ["synchronize", "call", "synchronize", "call", "synchronize"]
    assert seconds > 0


def test_the_device_times_calls_that_are_queued_already(device: Cuda, asked: list[str]) -> None:
    seconds = device.device_clock(lambda: asked.append("call"), 3)
    assert asked == ["sleep", "record", "call", "call", "call", "record", "wait"]
    assert seconds == pytest.approx(0.004)


def test_a_recording_is_run_once_before_and_replayed_after(device: Cuda, asked: list[str]) -> None:
    recording = device.capture(lambda: asked.append("run"))
    before = ["wait stream", "side stream", "run", "main stream", "wait stream"]
    assert asked == [*before, "capture", "run", "captured"]
    recording()
    assert asked[-1] == "replay"


@pytest.mark.parametrize(
    ("seen", "launches"),
    [
        (
            ["a_kernel", "Memcpy DtoH (Device -> Pageable)", "Memset (Device)", "b"],
            ("a_kernel", "b"),
        ),
        ([], None),
    ],
)
def test_launches_are_those_that_the_profiler_sees(
    device: Cuda,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    seen: list[str],
    launches: tuple[str, ...] | None,
) -> None:
    kinds = torch.autograd.DeviceType
    events = [SimpleNamespace(name="cudaLaunchKernel", device_type=kinds.CPU)]
    events += [SimpleNamespace(name=name, device_type=kinds.CUDA) for name in seen]

    @contextmanager
    def profile(activities: list[Any]) -> Iterator[SimpleNamespace]:
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        asked.append("profile")
        yield SimpleNamespace(events=lambda: events)
        asked.append("seen")

    monkeypatch.setattr(torch.profiler, "profile", profile)
    assert device.launches(lambda: asked.append("call")) == launches
    assert asked == ["synchronize", "profile", "call", "synchronize", "seen"]


def test_peak_memory_is_that_of_a_second_solve_over_what_was_there_before_the_first(
    device: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that keeps 100 bytes between solves and needs 1000 more in the second."""
    case = Case(2, 300, 4)
    memory = {"now": 50, "peak": 0}
    solves: list[int] = []

    def reset() -> None:
        memory["peak"] = memory["now"]

    def solve(f: Any, z0: torch.Tensor, steps: int) -> torch.Tensor:
        solves.append(steps)
        if len(solves) == 2:
            memory["now"] += 100
        # Compiling takes more in the first solve of the case than solving does in the second.
        memory["peak"] = memory["now"] + (9000 if len(solves) < 3 else 1000)
        return z0

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: memory["now"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: memory["peak"])
    provider = SolveProvider("kept", "under test", lambda name: solve)
    assert device.peak_solver_bytes(provider, case, dtype=torch.float32) == 1100
    assert solves == [3, 4, 4]  # a small problem first


def test_an_absent_provider_has_no_peak(device: Cuda) -> None:
    def load(name: str) -> Any:
        raise ProviderAbsentError(f"not on {name}")

    with pytest.raises(ProviderAbsentError, match="not on cuda"):
        device.peak_solver_bytes(
            SolveProvider("gone", "is not there", load), Case(2, 300, 4), dtype=torch.float32
        )


def test_the_machine_is_described(device: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine, "driver_version", lambda: "580.1")
    machine = device.describe()
    assert machine["device"] == "cuda"
    assert machine["gpu"] == "NVIDIA H200"
    assert machine["compute_capability"] == "9.0"
    assert machine["multiprocessors"] == 132
    assert machine["l2_cache_bytes"] == device.cache_bytes() == 62_914_560
    assert machine["driver"] == "580.1"
    assert machine["cpu"] is not None
    assert {"torch", "triton", "cuda", "torchdeq"} <= set(device.versions())
    assert device.why_no_memory() is None


@pytest.mark.parametrize(
    ("done", "version"),
    [
        (subprocess.CompletedProcess([], 0, stdout="580.159.03\n580.159.03\n"), "580.159.03"),
        (subprocess.CompletedProcess([], 9, stdout="no driver\n"), None),
        (FileNotFoundError(), None),
    ],
)
def test_driver_version(done: Any, version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **options: Any) -> Any:
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_machine.driver_version() == version


def test_the_copy_counts_what_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.device_copy._BYTES", 4096)
    copy = DeviceCopy(torch.device("cpu"), dtype=torch.float32)
    assert copy.bytes_moved == 2 * 4096
    copy()
    assert torch.equal(copy._target, copy._source)
    assert copy._source.unique().numel() > 500


def test_without_a_gpu_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu"):
        cuda.Cuda()
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, but got 'tpu'"):
        find_device("tpu")


def test_evaluations_are_counted_where_they_run() -> None:
    """A replay evaluates the map without calling it."""
    problem = make_problem(Case(2, 30, 4), dtype=torch.float32, count_on_device=True)
    counter = problem.f._count
    assert counter is not None
    problem.f(problem.z0)
    counter.add_(20)  # as 20 replays would
    assert problem.f.evaluations == 21


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ours-triton", "Triton kernels run on a GPU only: measure with --device cuda"),
        ("ours-graph", "CUDA graphs run on a GPU only: measure with --device cuda"),
    ],
)
def test_what_needs_a_gpu_is_absent_on_the_cpu(name: str, reason: str) -> None:
    with pytest.raises(ProviderAbsentError) as error_info:
        find_provider(name, PROVIDERS).load("cpu")
    assert str(error_info.value) == reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_ours_says_why_it_is_absent_on_a_gpu() -> None:
    with pytest.raises(ProviderAbsentError, match=r"no native kernels: .*the torch in use"):
        find_provider("ours", PROVIDERS).load("cuda")
    with pytest.raises(ProviderAbsentError, match=r"[Tt]riton"):
        find_provider("ours-triton", PROVIDERS).load("cuda")


def test_the_backend_is_entered_around_a_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    @contextmanager
    def use_backend(name: str) -> Iterator[None]:
        entered.append(name)
        yield
        entered.append("left")

    monkeypatch.setattr("deq_kernels.use_backend", use_backend)
    plain = SolveProvider(
        "plain", "of another package", lambda device: plain_pytorch.solve_textbook
    )
    with plain.context():
        assert entered == []
    with replace(plain, backend="triton").context():
        assert entered == ["triton"]
    assert entered == ["triton", "left"]
