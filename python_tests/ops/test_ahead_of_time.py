"""The Triton kernels compile for every architecture that the CUDA library is built for and Triton
knows, without a GPU, and keep what they work on in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deq_kernels.ops import backends

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(backends.triton_version() is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_and_do_not_spill(capability: int, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "python_tests.ops.ahead_of_time", str(capability)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environ, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    passes = {(kernel["name"], kernel["pass"]) for kernel in kernels}
    for name in ("measure", "conclude", "apply", "whole"):
        assert sum(taken == name for _, taken in passes) >= 3, f"no op has a pass {name}"
    assert all(kernel["bytes"] > 0 for kernel in kernels)
    spilled = [kernel for kernel in kernels if kernel["local"] > 0]
    assert not spilled
    streaming = [k for k in kernels if k["pass"] in ("measure", "apply")]
    assert any(kernel["wide_loads"] > 0 for kernel in streaming), "no loads of 16 bytes"
