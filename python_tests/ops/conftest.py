"""Every op test runs on each backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import deq_kernels as dk


@pytest.fixture(params=("native", "reference"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with dk.use_backend(request.param):
        yield request.param
