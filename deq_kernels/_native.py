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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deq_kernels._build import BuildFacts

PACKAGE_DIR = Path(__file__).resolve().parent
CPU_LIBRARY = "lib/libdeq_kernels_cpu.so"
CUDA_LIBRARY = "lib/libdeq_kernels_cuda.so"
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
REQUESTS = ("auto", "native", "triton", "reference")


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


def build_facts() -> tuple[BuildFacts | None, str | None]:
    """Return what the native code was built from and with, or None and the reason."""
    if importlib.util.find_spec("deq_kernels._build") is not None:
        return importlib.import_module("deq_kernels._build").build_facts(), None
    others = sorted(path.name for path in PACKAGE_DIR.glob("_build.*.so"))
    if others:
        return None, f"the module was built for another Python ({', '.join(others)}): reinstall"
    return None, _why_absent("deq_kernels._build")
