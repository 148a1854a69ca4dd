"""Op tests run on every backend that is here, and on the GPU too where there is one.

Tests make their tensors on torch's default device, which these fixtures set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

import deq_kernels as dk
from deq_kernels import _native
from deq_kernels.ops import backends

HAS_GPU = torch.cuda.is_available()
# Without a GPU, Triton interprets its kernels on CPU tensors.
ON_GPU = ("cuda", "triton") if HAS_GPU else ()
COMPILED = ("native", "cuda") if HAS_GPU else ("native",)
FUSED = (*COMPILED, "triton")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the marker `interpreter` says is too slow for Triton's interpreter."""
    slow = [item for item in items if not HAS_GPU and _is_slow(item)]
    if slow:
        config.hook.pytest_deselected(items=slow)
        left_out = set(map(id, slow))
        items[:] = [item for item in items if id(item) not in left_out]


def _is_slow(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("interpreter")
    params = getattr(getattr(item, "callspec", None), "params", {})
    if marker is None or "triton" not in (params.get("backend"), params.get("fused_backend")):
        return False
    values = dict(marker.kwargs)
    run = values.pop("run", True)
    return not run or any(params[name] not in wanted for name, wanted in values.items())


@contextmanager
def running(name: str) -> Iterator[str]:
    """Run every op on a backend inside the block; skips the test where it is absent."""
    if name == "cuda" and _native.load_cuda().path is None:
        pytest.skip(f"no CUDA library: {_native.load_cuda().absent}")
    if name == "triton" and backends.triton_version() is None:
        pytest.skip("Triton is not installed")
    backend = "native" if name == "cuda" else name
    device = torch.device("cuda") if name in ON_GPU else nullcontext()
    # NaN is an ordinary number to a GPU; the interpreter's numpy would warn of every one.
    with device, dk.use_backend(backend), np.errstate(all="ignore"):
        yield name


@pytest.fixture(params=(*FUSED, "reference"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that the test runs on; "cuda" is the compiled one on the GPU."""
    with running(request.param) as name:
        yield name


@pytest.fixture(params=FUSED)
def fused_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend but the reference."""
    with running(request.param) as name:
        yield name


@pytest.fixture(params=COMPILED)
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled libraries."""
    with running(request.param) as name:
        yield name


@pytest.fixture
def interpreted(request: pytest.FixtureRequest) -> bool:
    """Whether the test's backend is Triton's interpreter, which is slow: take smaller sizes."""
    names = [request.node.callspec.params.get(f) for f in ("backend", "fused_backend")]
    return "triton" in names and not HAS_GPU
