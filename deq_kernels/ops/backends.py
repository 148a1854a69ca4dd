"""Which kernels serve the ops: compiled ones, Triton's, or the PyTorch reference.

Compiled libraries register their kernels when they are loaded and keep them. Triton's kernels are
registered over them, or where there are none, only while they are wanted; the op itself, with its
schema, fake and autograd, is the same under every backend.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from deq_kernels import _native
from deq_kernels.ops.registry import NAMESPACE, OPS

BACKENDS = ("native", "triton", "reference")
FAMILIES = ("anderson", "broyden", "cells", "damped", "gmres", "low_rank")
INSTALL_TRITON = (
    "Install it with `pip install triton`; CUDA builds of torch for Linux bring it along"
)

TRITON_LIMITS = (
    "cells_iterate_: of structured cells Triton has the dense one; graph cells take the PyTorch "
    "reference, some kernels of torch's in every step and a wait for the device",
    "gmres_step_: Triton takes the sums over the state and torch everything else, a few hundred "
    "small kernels per evaluation; nothing waits for the device",
)
"""What ops with a Triton kernel leave to their reference all the same."""


@dataclass(frozen=True)
class TritonKernels:
    """Triton's kernels by the name of their op, and the dispatch keys they can serve here."""

    functions: dict[str, Callable[..., Any]]
    keys: tuple[str, ...]


def triton_version() -> str | None:
    """The version of the installed Triton, or None; does not import it."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a build that goes by another name
        return "of unknown version"


@cache
def triton_kernels() -> TritonKernels:
    """Import Triton's kernels of every family.

    They serve CUDA tensors, and CPU tensors too where TRITON_INTERPRET=1 made Triton interpret them
    when they were imported.

    Raises:
        ImportError: Triton is absent or cannot be imported.
    """
    if triton_version() is None:
        raise ImportError(f"The backend triton needs Triton, which is absent. {INSTALL_TRITON}.")
    functions: dict[str, Callable[..., Any]] = {}
    try:
        knobs = importlib.import_module("triton.knobs")
        for family in FAMILIES:
            module = importlib.import_module(f"deq_kernels.ops.{family}.triton")
            functions.update(module.KERNELS)
    except ImportError as error:
        raise ImportError(
            f"The backend triton needs a Triton that can be imported, but Triton "
            f"{triton_version()} failed:\n{error}\nInstall the version that the torch in use "
            f"({torch.__version__}) was made for. DEQ_KERNELS_BACKEND=reference runs the slower "
            "PyTorch reference meanwhile."
        ) from error
    keys = [] if _native.why_no_cuda() else ["CUDA"]
    if knobs.runtime.interpret:
        keys.append("CPU")
    return TritonKernels(functions, tuple(keys))


def usable_triton_kernels() -> TritonKernels:
    """Triton's kernels, where there are tensors they can serve.

    Raises:
        ImportError: Triton is absent or cannot be imported.
        RuntimeError: there is nothing for it to run on.
    """
    kernels = triton_kernels()
    if not kernels.keys:
        raise RuntimeError(
            f"The backend triton needs a GPU, but {_native.why_no_cuda()}. On a machine without "
            "one, set TRITON_INTERPRET=1 before the first import of Triton to run the kernels "
            "slowly on CPU tensors."
        )
    return kernels


class _Switch:
    """The backend in use, and Triton's registrations with the dispatcher while they last."""

    def __init__(self) -> None:
        self.name = "native"
        self.standing_keys: tuple[str, ...] = ()
        """Where Triton stands in for kernels that were not compiled, whatever is in use."""
        self.triton_keys: tuple[str, ...] = ()
        self._library: torch.library.Library | None = None
        self._lock = threading.RLock()
        # Held by the forking thread: no other, which could release it, is in the child.
        opened = self._lock.release
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=opened, after_in_child=opened
        )

    def turn(self, name: str) -> str:
        """Make `name` the backend in use; returns the one before.

        Raises:
            ImportError: Triton is wanted and cannot be imported.
            RuntimeError: Triton is wanted and there is nothing for it to run on.
        """
        keys = usable_triton_kernels().keys if name == "triton" else self.standing_keys
        with self._lock:
            self._register_triton(keys)
            before, self.name = self.name, name
            for op in OPS.values():
                op.call = op.reference if name == "reference" else op.overload
        return before

    def let_triton_stand_in(self) -> None:
        """Register Triton for CUDA tensors under every backend from now on."""
        self.standing_keys = ("CUDA",)
        self._register_triton(self.standing_keys)

    def _register_triton(self, keys: tuple[str, ...]) -> None:
        if keys == self.triton_keys:
            return
        if self._library is not None:
            # The kernels underneath, if any, are the dispatcher's choice again.
            self._library._destroy()
        self._library, self.triton_keys = None, ()
        if not keys:
            return
        library = torch.library.Library(NAMESPACE, "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="(?s).*Overriding a previously registered kernel"
            )
            for name, function in triton_kernels().functions.items():
                for key in keys:
                    library.impl(name, OPS[name].checked(function), key)
        self._library, self.triton_keys = library, keys


_SWITCH = _Switch()


def load() -> None:
    """Load the compiled libraries, and Triton's kernels where DEQ_KERNELS_BACKEND says so.

    Every schema must be defined before.

    Raises:
        ValueError: an environment variable has a value that cannot be met.
        ImportError: a library or Triton is there and cannot be loaded, or is demanded and absent.
    """
    _native.load_cpu()
    cuda = _native.load_cuda()
    wanted = _native.requested_backend()
    if wanted == "triton":
        try:
            keys = usable_triton_kernels().keys
        except (ImportError, RuntimeError) as error:
            raise ImportError(f"DEQ_KERNELS_BACKEND=triton cannot be met. {error}") from error
        if "CUDA" in keys:
            _SWITCH.let_triton_stand_in()
        _SWITCH.turn("triton")
    elif (
        wanted == "auto"
        and cuda.path is None
        and _native.why_no_cuda() is None
        and triton_version() is not None
    ):
        _SWITCH.let_triton_stand_in()


def cuda_backend() -> str | None:
    """Which backend serves CUDA tensors now, one of `BACKENDS`; None without a CUDA device."""
    if _native.why_no_cuda() is not None:
        return None
    if _SWITCH.name == "reference":
        return "reference"
    if "CUDA" in _SWITCH.triton_keys:
        return "triton"
    return "reference" if _native.load_cuda().path is None else "native"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op on one backend inside the `with` block, in all threads of the process.

    Blocks may be nested; each restores what it found, also after an error.

    Args:
        name: "native" (what was chosen at import: compiled kernels where they are loaded, Triton
            where it stands in for an absent CUDA library, else the reference), "triton" (Triton's
            kernels for CUDA tensors; graph cells, which it has not, take the reference) or
            "reference" (the PyTorch formulas, on any device). CPU tensors stay with the compiled
            kernels under "triton", unless TRITON_INTERPRET=1 was set before the first import of
            Triton: then it interprets its kernels on them.

    Raises:
        ValueError: for any other name.
        ImportError: Triton is wanted, and absent or broken.
        RuntimeError: Triton is wanted, and there is neither a GPU nor the interpreter.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend takes one of {', '.join(BACKENDS)}; got {name!r}.")
    before = _SWITCH.turn(name)
    try:
        yield
    finally:
        _SWITCH.turn(before)
