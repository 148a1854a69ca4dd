"""Compiles the Triton kernels for a GPU that is not there, and prints what they take as JSON.

A program of its own, for kernels are either compiled or interpreted, as TRITON_INTERPRET says when
they are defined: `python -m python_tests.ops.ahead_of_time COMPUTE_CAPABILITY`, such as 90.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from deq_kernels.ops import backends
from deq_kernels.ops.termination import Tables
from deq_kernels.ops.tiles import tile_count

BATCH = 2
CAPACITY = 31
# State, history and dimension: float32 and bfloat16, which must not spill, cut into a grid of tiles
# or into one program per sample, with rows that begin on 16 bytes or anywhere.
CASES = (
    (torch.float32, torch.float32, 61_440),
    (torch.bfloat16, torch.bfloat16, 1_000),
    (torch.float32, torch.bfloat16, 61_440),
    (torch.float32, torch.float32, 1_001),
)
# The compute capability for which all of them are compiled: compiling takes long.
THOROUGH = 90


class AbsentDevice:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def call_every_kernel(
    kernels: Mapping[str, Any], state: torch.dtype, history: torch.dtype, dim: int
) -> None:
    """Launch every op once in each of its forms, with tensors that nothing looks into."""
    z = torch.zeros(BATCH, dim, dtype=state)
    rows = torch.zeros(BATCH, CAPACITY, dim, dtype=history)
    table = torch.zeros(BATCH, CAPACITY, CAPACITY + 2, dtype=torch.float64)
    tables = Tables.new(BATCH, 30, z.device)
    record = (tables.record, tables.counters, tables.active)
    rank = torch.zeros(BATCH, dtype=torch.int64)

    def scratch(width: int) -> Tensor:
        return torch.zeros(BATCH, tile_count(dim, "cuda") + 1, width, dtype=torch.float64)

    limits = (1e-3, 0.0, 0.9)
    for finish in (True, False):
        state_of_step = (z, z, z.clone(), rows, table, *record, scratch(2 + 2 * CAPACITY))
        kernels["broyden_step_"](*state_of_step, *limits, 1.0, 30, 1e6, finish)
    for transpose in (True, False):
        kernels["broyden_matvec"](rows, table, rank, z[:, None], -1.0, transpose)
    kernels["low_rank_matvec"](rows, rows, rank, z[:, None], -1.0)
    kernels["low_rank_append_"](rows, rows.clone(), rank, z, z, -1.0)
    kernels["damped_step_"](z, z, z.clone(), *record, scratch(2), *limits, 30, 1e6)
    kernels["neumann_step_"](z, z, z.clone(), torch.zeros(BATCH, 2, dtype=torch.float64), 0.5)


def local_memory_accesses(cubin: bytes) -> int:
    """How many instructions of a kernel read or write local memory: registers that were spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        nvdisasm = triton.knobs.nvidia.nvdisasm.path
        done = subprocess.run([nvdisasm, file.name], check=True, capture_output=True, text=True)
    if "EXIT" not in done.stdout:
        raise RuntimeError(f"nvdisasm shows no instructions: {done.stdout[:200]!r}")
    return len(re.findall(r"\b(?:LDL|STL)\b", done.stdout))


def main(capability: int) -> None:
    driver.set_active(AbsentDevice(capability))
    launch = JITFunction.run
    compiled: list[dict[str, Any]] = []
    seen: set[str] = set()

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        kernel = launch(self, *args, **{**options, "warmup": True})
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            cubin = kernel.asm["cubin"]
            compiled.append(
                {
                    "name": self.fn.__name__,
                    "pass": options.get("PASS"),
                    "bytes": len(cubin),
                    "local": local_memory_accesses(cubin),
                    "wide_loads": kernel.asm["ptx"].count("ld.global.v4.b32"),
                }
            )
        return kernel

    kernels = backends.triton_kernels().functions
    with ExitStack() as pretences:
        pretences.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        # CPU tensors, taken for tensors on a GPU and cut like them.
        pretences.enter_context(mock.patch.object(torch.Tensor, "is_cuda", new=True))
        pretences.enter_context(mock.patch("torch.cuda.device", mock.MagicMock()))
        for module in (
            "broyden.triton",
            "damped.triton",
            "low_rank.triton",
            "triton_support.product",
        ):
            name = f"deq_kernels.ops.{module}.tile_count"
            pretences.enter_context(mock.patch(name, lambda dim, _: tile_count(dim, "cuda")))
        for state, history, dim in CASES if capability == THOROUGH else CASES[:2]:
            call_every_kernel(kernels, state, history, dim)
    json.dump(compiled, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]))
