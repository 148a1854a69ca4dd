"""What holds for every test: fixed seeds, NaN in uninitialised memory, no deadlines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

# Most problems here are too small to share, and threads that wait for each other on busy cores make
# the suite ten times slower. Tests about threads ask for more through `set_threads`.
torch.set_num_threads(1)


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
