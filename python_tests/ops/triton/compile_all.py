"""Compile every kernel as it would be launched on a GPU, without one; a program of its own.

    python compile_all.py 90:float32:bfloat16:1000 ...

takes what to compile for as compute capability, dtypes of state and history, and elements per
sample, and prints a JSON line for each kernel: what it is, and what the assembler says it needs.
The ops run as they always do, only that a launch compiles and does nothing else. Triton must not be
interpreting (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from deq_kernels.ops import backends, tiles
from deq_kernels.ops.termination import Counter, Norm
from deq_kernels.ops.triton_support import launch

BATCH, CAPACITY, MAX_STEPS = 2, 19, 20
USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*LOCAL:(?P<local>\d+)")
# Loads from global memory: how many values at a time, and the bits of each.
LOAD = re.compile(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)")


class AbsentGpu:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def usage(kernel: Any) -> dict[str, Any]:
    """What a compiled kernel needs of a thread, and the bytes that its loads take at a time."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", binary.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = USAGE.search(done.stdout)
    assert found is not None, done.stdout
    loads = {int(many or 1) * int(bits) // 8 for many, bits in LOAD.findall(kernel.asm["ptx"])}
    return {name: int(value) for name, value in found.groupdict().items()} | {
        "load_bytes": sorted(loads)
    }


def call_every_op(state: torch.dtype, history: torch.dtype, dim: int) -> None:
    """Call every op on tensors of these dtypes; what they hold does not matter."""
    ops = backends.triton_kernels().functions
    table = functools.partial(torch.zeros, dtype=torch.float64)
    counts = functools.partial(torch.zeros, dtype=torch.int64)
    z, f_z, best_z = (torch.zeros(BATCH, dim, dtype=state) for _ in range(3))
    u, v = (torch.zeros(BATCH, CAPACITY, dim, dtype=history) for _ in range(2))
    algebra, rank = table(BATCH, CAPACITY, CAPACITY + 2), counts(BATCH)
    record, counters = table(BATCH, len(Norm) + MAX_STEPS), counts(BATCH, len(Counter))
    rows = tiles.tile_count(dim, "cuda") + 1
    tables = record, counters, counts(1)
    scratch = table(BATCH, rows, 2 + 2 * CAPACITY)
    options = 1e-3, 0.0, 1.0, 1.0, 0, 1e6, True, True, True, 2
    ops["broyden_step_"](f_z, z, best_z, u, algebra, *tables, scratch, *options)
    changes = u, v, torch.zeros_like(z), table(BATCH, CAPACITY, 2 * CAPACITY)
    options = 1e-3, 0.0, 1.0, 1e-8, 0, 1e6
    ops["anderson_step_"](f_z, z, best_z, *changes, *tables, scratch, *options)
    ops["broyden_matvec"](u, algebra, rank, z[:, None], -1.0, True)
    ops["low_rank_matvec"](u, v, rank, z[:, None], -1.0)
    ops["low_rank_dots"](u, rank, z[:, None])
    ops["low_rank_combine"](u, rank, table(BATCH, 1, CAPACITY), z[:, None], -1.0)
    ops["low_rank_append_"](u, v, rank, z, f_z, -1.0)
    ops["damped_step_"](f_z, z, best_z, *tables, table(BATCH, rows, 2), 1e-3, 0.0, 1.0, 0, 1e6)
    ops["neumann_step_"](f_z, best_z, z, table(BATCH, 2), 0.5)
    weight = torch.zeros(dim, dim, dtype=state)
    options = 0, 1e-3, 0.0, 1.0, 0, 0, 1e6, False
    # As of a solve, and as of an adjoint; with damped and with accelerated steps.
    for v, scale, accelerate in ((weight, None, False), (weight.T, best_z, True)):
        absent = None, None, None, None
        ops["cells_iterate_"](v, *absent, f_z, scale, z, *tables, *options, accelerate)


def main(wanted: list[str]) -> None:
    # Tensors on the CPU stand for those of a GPU.
    launch.INTERPRETED = True
    tiles.TILES["cpu"] = tiles.TILES["cuda"]
    compiled: list[tuple[JITFunction[Any], dict[str, Any], Any]] = []

    def compile_only(function: JITFunction[Any], grid: tuple[int]) -> Callable[..., None]:
        def compile_one(*args: Any, **options: Any) -> None:
            compiled.append((function, options, function.warmup(*args, grid=grid, **options)))

        return compile_one

    JITFunction.__getitem__ = compile_only
    for target in wanted:
        capability, state, history, dim = target.split(":")
        driver.set_active(AbsentGpu(int(capability)))
        compiled.clear()
        call_every_op(getattr(torch, state), getattr(torch, history), int(dim))
        for function, options, kernel in compiled:
            name = f"{function.__module__}.{function.__name__}"
            what = {"target": target, "name": name, "pass": options.get("PASS", "whole")}
            print(json.dumps({**what, **usage(kernel)}))


if __name__ == "__main__":
    main(sys.argv[1:])
