"""What holds for every test: fixed seeds, NaN in uninitialised memory, no deadlines."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pytest
import torch

# Read when Triton's kernels are imported: without a GPU they are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Read when cuBLAS is initialised: what torch wants of it for deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
# The long run: --hypothesis-profile=thorough, 2,500 new cases for every property.
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2500)
hypothesis.settings.load_profile("repeatable")

# Most problems here are too small to share, and threads that wait for each other on busy cores make
# the suite ten times slower. Tests about threads ask for more through `set_threads`.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "interpreter(run=True, **values): what of a test Triton's interpreter runs, which takes "
        "tens of milliseconds per program: nothing, or the given values of the parameters",
    )


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Seed every generator, and fill memory that torch.empty returns with NaN."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Return torch.set_num_threads; the number before is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
