"""Triton's kernels: interpreted where there is no GPU, on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import deq_kernels as dk
from deq_kernels.ops import backends
from python_tests.gpu.engines import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Every op on Triton, for the checks of `python_tests.gpu.against_float64`."""
    if backends.triton_version() is None:
        pytest.skip("Triton is not installed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # NaN is an ordinary number to a GPU; the interpreter's numpy would warn of every one.
    with dk.use_backend("triton"), np.errstate(all="ignore"):
        yield Engine("triton", device)
