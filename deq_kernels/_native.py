"""The only file that knows whether a native binary exists.

Three files may lie in the package, all made by setup.py: the CPU library and the CUDA library,
which give the ops their kernels for CPU and CUDA tensors, and the module `_build`, which states
what they were built from. An install without a C++ compiler has none of them, one without the CUDA
toolkit has no CUDA library, and the module alone may be absent where Python's C headers were.
Triton or the PyTorch reference does the work of an absent library (`deq_kernels.ops.backends`), and
`deq_kernels.backend_info()` says so, why, and what to do.

Environment variable DEQ_KERNELS_BACKEND: `auto` (default) loads the libraries where they are, the
CUDA library only where torch sees a GPU; `native` demands them; `triton` leaves the CUDA library
alone, `reference` both. DEQ_KERNELS_CPU_ISA: `baseline`, `avx2`, `avx512` or `avx512_bf16`
picks the instruction set; unset, the CPU library takes the newest that the processor has.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from deq_kernels._build import BuildFacts, CellPlan, LaunchPlan, StreamPlan

PACKAGE_DIR = Path(__file__).resolve().parent
CPU_LIBRARY = "lib/libdeq_kernels_cpu.so"
CUDA_LIBRARY = "lib/libdeq_kernels_cuda.so"
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
REQUESTS = ("auto", "native", "triton", "reference")
REGIMES = ("block", "cluster", "grid")


@dataclass(frozen=True)
class Library:
    """A loaded library, or the reason that there is none; one of the two is None."""

    path: Path | None
    absent: str | None


def requested_backend() -> str:
    """Return the value of DEQ_KERNELS_BACKEND, checked.

    Raises:
        ValueError: it has another value than those of `REQUESTS`.
    """
    wanted = os.environ.get("DEQ_KERNELS_BACKEND", "auto")
    if wanted not in REQUESTS:
        raise ValueError(
            f"DEQ_KERNELS_BACKEND must be one of {', '.join(REQUESTS)}, but is {wanted!r}. Unset "
            "it to use the native kernels wherever they were built."
        )
    return wanted


def why_no_cuda() -> str | None:
    """Return why this process cannot have CUDA tensors, or None where it can."""
    if torch.version.cuda is None:
        return (
            f"the torch in use ({torch.__version__}) is built without CUDA; install a CUDA build "
            "of torch"
        )
    if not torch.cuda.is_available():
        return (
            f"the torch in use ({torch.__version__}) sees no CUDA device; `nvidia-smi` shows "
            "whether there is one and a driver for it"
        )
    return None


def _why_absent(part: str) -> str:
    """Return why the build left out the part, a name of setup.py's, or that there was no build."""
    record = PACKAGE_DIR / "_build_record.json"
    if record.exists():
        absent: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))["absent"]
        if part in absent:
            return absent[part]
    return (
        f"{PACKAGE_DIR} does not hold it; this looks like a source tree that was never built: run "
        "`pip install --no-build-isolation -e .` in it"
    )


def _absent(kind: str, part: str) -> Library:
    """Return that a library was not built, or raise where it is demanded."""
    reason = _why_absent(part)
    if requested_backend() == "native":
        raise ImportError(
            f"DEQ_KERNELS_BACKEND=native demands the native {kind} library, but {reason}."
        )
    return Library(None, reason)


def _left_alone(wanted: str) -> Library:
    return Library(None, f"DEQ_KERNELS_BACKEND={wanted} leaves it alone; unset it")


@functools.cache
def load_cpu() -> Library:
    """Load the CPU library, once; the schemas of its ops must be defined before.

    Returns:
        The library, or the reason that there is none.

    Raises:
        ValueError: DEQ_KERNELS_BACKEND or DEQ_KERNELS_CPU_ISA has a value that cannot be met.
        ImportError: the library exists and cannot be loaded, or it is demanded and does not exist.
    """
    wanted = requested_backend()
    if wanted == "reference":
        return _left_alone(wanted)
    path = PACKAGE_DIR / CPU_LIBRARY
    if not path.exists():
        return _absent("CPU", "deq_kernels.lib.libdeq_kernels_cpu")
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"The native CPU library must load with the torch in use ({torch.__version__}; the "
            f"library runs on torch 2.11 and newer), but loading {path} failed:\n{error}\n"
            f"Build it again with this torch: run `{REBUILD}` in the sources. "
            "DEQ_KERNELS_BACKEND=reference runs the slower PyTorch reference meanwhile."
        ) from error
    _check_isa(path)
    return Library(path, None)


def _built_by() -> str:
    """The compiler of the CUDA library, for a message."""
    facts, absent = build_facts()
    if facts is None:
        return f"unknown, for {absent}"
    return str(facts["cuda_compiler"])


@functools.cache
def load_cuda() -> Library:
    """Load the CUDA library where torch sees a GPU, once; the schemas must be defined before.

    Returns:
        The library, or the reason that there is none.

    Raises:
        ValueError: DEQ_KERNELS_BACKEND has an unknown value.
        ImportError: the library exists and cannot be loaded, or it is demanded and does not exist.
    """
    wanted = requested_backend()
    if wanted in ("triton", "reference"):
        return _left_alone(wanted)
    no_cuda, path = why_no_cuda(), PACKAGE_DIR / CUDA_LIBRARY
    if no_cuda is not None:
        if not path.exists():
            # Another torch alone would not help.
            no_cuda = f"{_why_absent('deq_kernels.lib.libdeq_kernels_cuda')}. Besides, {no_cuda}"
        return Library(None, no_cuda)
    if not path.exists():
        return _absent("CUDA", "deq_kernels.lib.libdeq_kernels_cuda")
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        raise ImportError(
            "The native CUDA library must load with the torch in use, a CUDA build of torch 2.11 "
            f"or newer that brings the CUDA runtime the library was built for ({_built_by()}). "
            f"This is torch {torch.__version__} for CUDA {torch.version.cuda}, "
            f"and loading {path} failed:\n{error}\n"
            "Install a torch built for that CUDA, or build the library again with this torch and "
            f"the CUDA toolkit it was built with: run `{REBUILD}` in the sources. "
            "DEQ_KERNELS_BACKEND=triton runs Triton's kernels meanwhile, where Triton is "
            "installed, and DEQ_KERNELS_BACKEND=reference the slower PyTorch reference."
        ) from error
    return Library(path, None)


def _check_isa(path: Path) -> None:
    """Raise ValueError where the instruction set asked for is not the one in use."""
    wanted = os.environ.get("DEQ_KERNELS_CPU_ISA")
    active = _isa_of(path)
    if wanted is not None and wanted != active:
        raise ValueError(
            "DEQ_KERNELS_CPU_ISA must be baseline, avx2, avx512 or avx512_bf16 and supported by "
            f"this processor, but is {wanted!r}; the library chose {active}. Unset it, or ask for "
            "an older one."
        )


def _isa_of(path: Path) -> str:
    active_isa = ctypes.CDLL(str(path)).deq_kernels_active_isa
    active_isa.restype = ctypes.c_char_p
    return active_isa().decode()


def active_isa() -> str | None:
    """Return the instruction set that the loaded CPU library chose on this processor, if any."""
    path = load_cpu().path
    return None if path is None else _isa_of(path)


def empty_cache() -> int:
    """Give the CPU memory of finished solves back to the operating system; returns its bytes."""
    path = load_cpu().path
    if path is None:
        return 0
    release = ctypes.CDLL(str(path)).deq_kernels_empty_cache
    release.restype = ctypes.c_int64
    released: int = release()
    return released


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
    path = load_cuda().path
    if path is None:
        raise RuntimeError(
            "force_regime needs the native CUDA library, whose launches it steers, but "
            f"{load_cuda().absent}."
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
            f"version than this package. Build it again: run `{REBUILD}` in the sources."
        )
    _forced_regime = name


def build_facts() -> tuple[BuildFacts | None, str | None]:
    """Return what the native code was built from and with, or None and the reason."""
    if importlib.util.find_spec("deq_kernels._build") is not None:
        return importlib.import_module("deq_kernels._build").build_facts(), None
    others = sorted(path.name for path in PACKAGE_DIR.glob("_build.*.so"))
    if others:
        return None, f"the module was built for another Python ({', '.join(others)}): reinstall"
    return None, _why_absent("deq_kernels._build")


def _require_planner() -> None:
    facts, absent = build_facts()
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
    if why_no_cuda() is not None:
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
