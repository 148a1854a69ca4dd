"""jaxopt's Broyden method (jit + vmap), in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..provider import ProviderAbsentError
from .elsewhere import SolverElsewhere
from .problem import AffineMap

if TYPE_CHECKING:
    from torch import Tensor

    from .providers import Map, Solve

# -P keeps the worker's folder off its import path; Python 3.10 has no such option.
_SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []
_WORKER = Path(__file__).with_name("jaxopt_worker.py")


def load_jaxopt(device: str) -> "Solve":
    """``jaxopt.Broyden`` with γ = −1 and unit steps, compiled and mapped over the batch.

    The process starts with the first solve, and ends with this one or when the solver is forgotten.

    Raises:
        ProviderAbsentError: jaxopt is not installed, or the device is not the CPU.
    """
    if device != "cpu":
        raise ProviderAbsentError("jaxopt is measured on the CPU only: use --device cpu")
    for package in ("jax", "jaxopt"):
        if importlib.util.find_spec(package) is None:
            raise ProviderAbsentError(f"{package} is not installed: pip install jaxopt")
    return JaxoptSolver()


class JaxoptSolver(SolverElsewhere):
    """Solves the affine problems of the benchmark in a process that only JAX works in.

    It gets as many cores as torch has threads. The problem is sent there, compiled and solved once
    before it is timed; what is timed is the solve alone, within that process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._dtype: torch.dtype | None = None
        self._prepared: tuple[object, ...] | None = None
        self._z: Tensor | None = None
        self._evaluations = 0

    @property
    def process(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __call__(self, f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        if not isinstance(f, AffineMap):
            raise TypeError(
                f"jaxopt needs the map in JAX, which it knows of AffineMap only; got {type(f)}."
            )
        if self._prepared is None or self._prepared != (f, z0.shape, z0.dtype, steps):
            self._prepare(f, z0, steps)
        f.count_elsewhere(self._evaluations)
        assert self._z is not None
        return self._z

    def clock(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of one solve of the problem that was sent last."""
        return float(self._ask({"do": "solve", "repeats": repeats})["seconds"])

    def peak_bytes(self, f: "Map", z0: "Tensor", steps: int) -> int:
        self(f, z0, steps)
        return int(self._ask({"do": "weigh"})["bytes"])

    def _prepare(self, f: AffineMap, z0: "Tensor", steps: int) -> None:
        if self._dtype != z0.dtype:  # whether JAX has float64 is decided when it starts
            self._start(z0.dtype)
        name = str(z0.dtype).removeprefix("torch.")
        batch, dim = z0.shape
        request = {"do": "prepare", "dtype": name, "batch": batch, "dim": dim, "steps": steps}
        answer = self._ask(request, f.slopes, f.offsets, z0)
        assert self._process is not None
        assert self._process.stdout is not None
        data = self._process.stdout.read(z0.numel() * z0.itemsize)
        self._z = torch.frombuffer(bytearray(data), dtype=z0.dtype).view(z0.shape)
        self._evaluations = int(answer["evaluations"])
        self._prepared = (f, z0.shape, z0.dtype, steps)

    def _start(self, dtype: torch.dtype) -> None:
        environment = {
            **os.environ,
            "JAX_ENABLE_X64": "1" if dtype == torch.float64 else "0",
            "JAX_PLATFORMS": "cpu",
        }
        threads = torch.get_num_threads()
        self._process = subprocess.Popen(
            [sys.executable, *_SAFE_PATH, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._dtype, self._prepared = dtype, None
        weakref.finalize(self, _stop, self._process)
        if hasattr(os, "sched_setaffinity"):  # before JAX makes its threads
            cores = sorted(os.sched_getaffinity(0))[:threads]
            os.sched_setaffinity(self._process.pid, cores)

    def _ask(self, request: dict[str, Any], *arrays: "Tensor") -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        for array in arrays:
            process.stdin.write(array.contiguous().numpy().tobytes())
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of jaxopt ended with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a worker, which stops when its input does."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()
