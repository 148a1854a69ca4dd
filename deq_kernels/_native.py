"""The only file that knows whether a native binary exists.

Two files may lie beside this one, both made by setup.py: the CPU library, which gives the ops their
CPU kernels, and the module `_build`, which states what the library was built from. An install
without a C++ compiler has neither; the ops then run their PyTorch reference, and `backend_info()`
says so, why, and what to do. The module alone may be absent where Python's C headers were.

Environment variable DEQ_KERNELS_BACKEND: `auto` (default) loads the library where there is one,
`native` demands it, `reference` leaves it alone. DEQ_KERNELS_CPU_ISA: `baseline`, `avx2` or
`avx512` picks the instruction set; unset, the library takes the newest that the processor has.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deq_kernels._version import __version__

if TYPE_CHECKING:
    from deq_kernels._build import BuildFacts, StreamPlan

NAMESPACE = "deq_kernels"
PACKAGE_DIR = Path(__file__).resolve().parent
LIBRARY_NAME = "lib/libdeq_kernels_cpu.so"
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


@dataclass(frozen=True)
class CpuLibrary:
    """The loaded CPU library, or the reason that there is none; one of the two is None."""

    path: Path | None
    absent: str | None


@dataclass(frozen=True)
class BackendInfo:
    """What this installation runs on.

    Attributes:
        version: version of deq_kernels.
        torch_version: version of the torch in use.
        torch_threads: number of threads torch (and the native kernels) use now.
        cpu_library: path of the loaded CPU library, or None.
        cpu_library_absent: why there is none, with the cure, or None.
        build: what the native code was built from and with, or None.
        build_absent: why these facts are unknown, or None.
        active_isa: instruction set that the loaded CPU library chose on this processor, or None.
        native_ops: ops that hold a native CPU kernel.
        reference_ops: ops that run their PyTorch reference on the CPU.
    """

    version: str
    torch_version: str
    torch_threads: int
    cpu_library: str | None
    cpu_library_absent: str | None
    build: BuildFacts | None
    build_absent: str | None
    active_isa: str | None
    native_ops: tuple[str, ...]
    reference_ops: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, fit for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = {
            "deq_kernels": self.version,
            "torch": f"{self.torch_version}, {self.torch_threads} thread(s)",
            "CPU library": self.cpu_library or f"absent: {self.cpu_library_absent}",
        }
        if self.active_isa is not None:
            rows["active ISA"] = self.active_isa
        if self.build is None:
            rows["build"] = f"unknown: {self.build_absent}"
        else:
            rows["build"] = (
                f"{self.build['compiler']}, {self.build['build_type']}, "
                f"ISAs {self.build['isas']}, against torch {self.build['torch_built_against']}, "
                f"runs on torch {self.build['torch_target']} and newer"
            )
        rows["native ops"] = ", ".join(self.native_ops) or "none"
        rows["reference ops"] = ", ".join(self.reference_ops) or "none"
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


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


@functools.cache
def load() -> CpuLibrary:
    """Load the CPU library, once; the schemas of its ops must be defined before.

    Returns:
        The library, or the reason that there is none.

    Raises:
        ValueError: DEQ_KERNELS_BACKEND or DEQ_KERNELS_CPU_ISA has a value that cannot be met.
        ImportError: the library exists and cannot be loaded, or it is demanded and does not exist.
    """
    wanted = os.environ.get("DEQ_KERNELS_BACKEND", "auto")
    if wanted not in ("auto", "native", "reference"):
        raise ValueError(
            f"DEQ_KERNELS_BACKEND must be auto, native or reference, but is {wanted!r}. Unset it "
            "to use the native kernels wherever they were built."
        )
    if wanted == "reference":
        return CpuLibrary(
            None, "DEQ_KERNELS_BACKEND=reference asks for the PyTorch reference; unset it"
        )
    path = PACKAGE_DIR / LIBRARY_NAME
    if not path.exists():
        reason = _why_absent("deq_kernels.lib.libdeq_kernels_cpu")
        if wanted == "native":
            raise ImportError(
                f"DEQ_KERNELS_BACKEND=native demands the native CPU library, but {reason}."
            )
        return CpuLibrary(None, reason)
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
    return CpuLibrary(path, None)


def _check_isa(path: Path) -> None:
    """Raise ValueError where the instruction set asked for is not the one in use."""
    wanted = os.environ.get("DEQ_KERNELS_CPU_ISA")
    active = _active_isa(path)
    if wanted is not None and wanted != active:
        raise ValueError(
            "DEQ_KERNELS_CPU_ISA must be baseline, avx2 or avx512 and supported by this processor, "
            f"but is {wanted!r}; the library chose {active}. Unset it, or ask for an older one."
        )


def _active_isa(path: Path) -> str:
    """Return the instruction set that the loaded library chose on this processor."""
    active_isa = ctypes.CDLL(str(path)).deq_kernels_active_isa
    active_isa.restype = ctypes.c_char_p
    return active_isa().decode()


def empty_cache() -> int:
    """Give the memory of finished solves back to the operating system.

    The CPU library keeps the buffers of finished solver histories for the next solve, never more
    than were once in use together.

    Returns:
        How many bytes were given back; 0 where there is no CPU library.
    """
    path = load().path
    if path is None:
        return 0
    release = ctypes.CDLL(str(path)).deq_kernels_empty_cache
    release.restype = ctypes.c_int64
    released: int = release()
    return released


def _build_facts() -> tuple[BuildFacts | None, str | None]:
    """Return the build facts, or None and the reason."""
    if importlib.util.find_spec("deq_kernels._build") is not None:
        return importlib.import_module("deq_kernels._build").build_facts(), None
    others = sorted(path.name for path in PACKAGE_DIR.glob("_build.*.so"))
    if others:
        return None, f"the module was built for another Python ({', '.join(others)}): reinstall"
    return None, _why_absent("deq_kernels._build")


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
    facts, absent = _build_facts()
    if facts is None:
        raise RuntimeError(f"The launch planner is native code, but {absent}.")
    return importlib.import_module("deq_kernels._build").plan_stream(
        batch=batch,
        dim=dim,
        rank=rank,
        state_bytes=element_bytes,
        history_bytes=element_bytes,
        threads=torch.get_num_threads(),
    )


def _defined_ops() -> list[str]:
    """Return the names of the ops defined in the namespace, read from torch's dispatcher."""
    prefix = f"{NAMESPACE}::"
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    return sorted(name.removeprefix(prefix) for name in names)


def backend_info() -> BackendInfo:
    """Return what this installation runs on, and why anything native is absent.

    Returns:
        A report whose `str()` is meant to be read.
    """
    library = load()
    facts, build_absent = _build_facts()
    native: list[str] = []
    reference: list[str] = []
    for op in _defined_ops():
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CPU")
        (native if has_kernel else reference).append(op)
    return BackendInfo(
        version=__version__,
        torch_version=str(torch.__version__),
        torch_threads=torch.get_num_threads(),
        cpu_library=None if library.path is None else str(library.path),
        cpu_library_absent=library.absent,
        build=facts,
        build_absent=build_absent,
        active_isa=None if library.path is None else _active_isa(library.path),
        native_ops=tuple(native),
        reference_ops=tuple(reference),
    )
