"""How the native kernels are launched: plans, and regimes that tests and measurements force."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deq_kernels import _native

if TYPE_CHECKING:
    from deq_kernels._build import CellPlan, LaunchPlan, StreamPlan

REGIMES = ("block", "cluster", "grid")

_forced_regime = ""


@contextmanager
def force_regime(name: str) -> Iterator[None]:
    """Run the CUDA library's steps in one regime inside the `with` block, where the sizes allow it.

    For tests and measurements; the planner chooses otherwise. In all threads of the process.

    Args:
        name: "block", "cluster" or "grid".

    Raises:
        ValueError: for any other name.
        RuntimeError: no CUDA library is loaded.
    """
    if name not in REGIMES:
        raise ValueError(f"force_regime takes one of {', '.join(REGIMES)}; got {name!r}.")
    path = _native.load_cuda().path
    if path is None:
        raise RuntimeError(
            "force_regime needs the native CUDA library, whose launches it steers, but "
            f"{_native.load_cuda().absent}."
        )
    global _forced_regime
    before = _forced_regime
    _set_regime(path, name)
    try:
        yield
    finally:
        _set_regime(path, before)


def _set_regime(path: Path, name: str) -> None:
    global _forced_regime
    force = ctypes.CDLL(str(path)).deq_kernels_force_regime
    force.argtypes, force.restype = [ctypes.c_char_p], ctypes.c_int
    if force(name.encode()) != 0:
        raise RuntimeError(
            f"The native CUDA library {path} does not know the regime {name!r}: it is of another "
            f"version than this package. Build it again: run `{_native.REBUILD}` in the sources."
        )
    _forced_regime = name


def _require_planner() -> None:
    facts, absent = _native.build_facts()
    if facts is None:
        raise RuntimeError(f"The launch planner is native code, but {absent}.")


def plan_stream(*, batch: int, dim: int, rank: int, element_bytes: int = 4) -> StreamPlan:
    """Return how the native CPU kernels cut one solver step.

    Args:
        batch: number of samples.
        dim: elements per sample.
        rank: stored directions per sample.
        element_bytes: bytes per element of the state and of the stored directions.

    Returns:
        The regime (`serial`, `samples` or `tiles`: what the threads share), the tile in elements,
        the tiles per sample, and the bytes that the step moves at least.

    Raises:
        RuntimeError: the native code is absent; the message says why.
        ValueError: a size is out of range.
    """
    _require_planner()
    return importlib.import_module("deq_kernels._build").plan_stream(
        batch=batch,
        dim=dim,
        rank=rank,
        state_bytes=element_bytes,
        history_bytes=element_bytes,
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class Gpu:
    """What the launch planner needs to know of a GPU; by default an H200's.

    Attributes:
        name: the device, for reading.
        multiprocessors: streaming multiprocessors.
        shared_bytes: shared memory that one block may ask for, in bytes.
        max_cluster: largest number of blocks in a thread-block cluster, 1 where there are none.
    """

    name: str = "NVIDIA H200"
    multiprocessors: int = 132
    shared_bytes: int = 232448
    max_cluster: int = 16


def present_gpu() -> Gpu | None:
    """Return the facts of torch's current CUDA device, or None where there is none."""
    if _native.why_no_cuda() is not None:
        return None
    # Any, because torch's stubs leave out the shared memory that a block may opt in to.
    facts: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    # torch does not report clusters: compute capability 9 and 10 take 16 blocks, 12 takes 8.
    max_cluster = 1 if facts.major < 9 else 16 if facts.major < 12 else 8
    return Gpu(
        facts.name,
        facts.multi_processor_count,
        facts.shared_memory_per_block_optin,
        max_cluster,
    )


def plan_launch(
    *, batch: int, dim: int, rank: int, element_bytes: int = 4, gpu: Gpu | None = None
) -> LaunchPlan:
    """Return how the native CUDA kernels run one Broyden step; works without a GPU.

    Args:
        batch: number of samples.
        dim: elements per sample.
        rank: stored directions per sample before the step; the history has room for one more.
        element_bytes: bytes per element of the state and of the stored directions.
        gpu: the device planned for; None for the one in use, or an H200 where there is none.

    Returns:
        The regime (`block`, `cluster` or `grid`: what works on one sample), the blocks per sample
        in a cluster, the tile in elements, the tiles per sample, the directions kept on the chip
        between the passes, the shared memory per block in bytes, the launches per step, and the
        bytes that the step moves at least.

    Raises:
        RuntimeError: the native code is absent; the message says why.
        ValueError: a size is out of range.
    """
    _require_planner()
    gpu = gpu or present_gpu() or Gpu()
    return importlib.import_module("deq_kernels._build").plan_launch(
        batch=batch,
        dim=dim,
        capacity=rank + 1,
        state_bytes=element_bytes,
        history_bytes=element_bytes,
        multiprocessors=gpu.multiprocessors,
        shared_bytes=gpu.shared_bytes,
        max_cluster=gpu.max_cluster,
    )


def plan_cells(
    *,
    samples: int,
    nodes: int | None,
    dim: int,
    element_bytes: int = 4,
    accelerate: bool = True,
    gpu: Gpu | None = None,
) -> CellPlan:
    """Return how the native CUDA kernel solves a structured cell; works without a GPU.

    Args:
        samples: number of graphs, or of rows of a dense cell.
        nodes: nodes per graph, on average; None for a dense cell, each row of which is a sample.
        dim: features of a node, or elements of a row.
        element_bytes: bytes per element of the state and of the weight: 2, 4 or 8.
        accelerate: accelerated steps, as they are the default of solves.
        gpu: the device planned for; None for the one in use, or an H200 where there is none.

    Returns:
        The regime (`block`, `cluster` or `grid`: what works on one graph), the blocks of the
        launch, those per cluster, the rows that a block takes at a time, whether the weight stays
        on the chip, the rows of a graph that a block has room for there, the shared memory per
        block and the scratch of the launch in bytes, and the launches of the solve.

    Raises:
        RuntimeError: the native code is absent; the message says why.
        ValueError: a size is out of range.
    """
    _require_planner()
    gpu = gpu or present_gpu() or Gpu()
    return importlib.import_module("deq_kernels._build").plan_cells(
        samples=samples,
        rows=1 if nodes is None else nodes,
        dim=dim,
        grouped=nodes is not None,
        accelerate=accelerate,
        state_bytes=element_bytes,
        accum_bytes=max(4, element_bytes),
        multiprocessors=gpu.multiprocessors,
        shared_bytes=gpu.shared_bytes,
        max_cluster=gpu.max_cluster,
    )
