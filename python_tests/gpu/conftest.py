"""What GPU tests run on: every regime of the compiled kernels, and Triton's.

The same tests run on the CPU library first, which says that the tests themselves are right.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from python_tests.gpu.engines import ENGINES, GPU_ENGINES, Engine, running


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The CPU library, and everything that serves a GPU."""
    with running(request.param) as present:
        yield present


@pytest.fixture(params=GPU_ENGINES)
def gpu_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Everything that serves a GPU."""
    with running(request.param) as present:
        yield present
