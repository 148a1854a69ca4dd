"""Every kernel compiles for every GPU, spills nothing, and reads 16 bytes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deq_kernels.ops import backends

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = "python_tests.ops.triton.compile_all"
MAIN, OTHERS = ("float32:float32", "bfloat16:bfloat16"), ("float32:bfloat16",)
TARGETS = [(80, MAIN), (90, MAIN), (90, OTHERS), (100, MAIN)]
# One program per sample, and three passes over several tiles.
WHOLE, TILED = 1000, 6144
# Kernels of the steps of Broyden and Anderson, of products in both forms, of the append, the damped
# step and the Neumann step, which has but two passes; and of the halves of the sum form's product,
# two and one. The dense cell is one pass of any size, without and with a scale.
KERNELS = {WHOLE: 9 + 2, TILED: 7 * 3 - 1 + 3 + 2}
A_CALL_ON_THE_CPU = """
import torch
from deq_kernels.ops.damped.triton import neumann_step_
w = torch.zeros(2, 3)
neumann_step_(w, w, w.clone(), torch.zeros(2, 2, dtype=torch.float64), 0.5)
"""

pytestmark = pytest.mark.skipif(backends.triton_version() is None, reason="Triton is not installed")


def without_interpreter(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where Triton compiles its kernels."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled kernels, which the next run of the tests finds again if pytest keeps a cache."""
    kept: pytest.Cache | None = getattr(request.config, "cache", None)
    return tmp_path_factory.mktemp("triton") if kept is None else kept.mkdir("triton")


@pytest.mark.parametrize(("capability", "dtypes"), TARGETS)
def test_every_kernel_compiles(cache: Path, capability: int, dtypes: tuple[str, ...]) -> None:
    targets = [f"{capability}:{pair}:{dim}" for pair in dtypes for dim in (WHOLE, TILED)]
    done = without_interpreter("-m", PROGRAM, *targets, cache=cache)
    assert done.returncode == 0, done.stderr
    kernels: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == len(dtypes) * sum(KERNELS.values())
    for kernel in kernels:
        # What a thread cannot keep in registers goes to its stack, or to local memory.
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert 0 < kernel["registers"] <= 128, kernel
        # Tables and counters are of 8 bytes; everything along the dimension comes 16 at a time.
        assert set(kernel["load_bytes"]) <= {8, 16}, kernel
        assert kernel["pass"] == "conclude" or 16 in kernel["load_bytes"], kernel


def test_cpu_tensors_are_refused(cache: Path) -> None:
    done = without_interpreter("-c", A_CALL_ON_THE_CPU, cache=cache)
    assert done.returncode != 0
    assert "w must be on a GPU for the Triton kernels, but is on cpu" in done.stderr
