"""Peak memory, in a process of its own."""

import pytest
import torch

from benchmarks.broyden.cases import Case
from benchmarks.broyden.memory import can_measure_memory, peak_solver_bytes
from benchmarks.broyden.providers import PROVIDERS
from benchmarks.provider import find_provider


@pytest.mark.skipif(not can_measure_memory(), reason="peak memory is read from Linux's /proc")
def test_peak_of_plain_pytorch_holds_its_two_histories() -> None:
    case = Case(4, 100_000, 11)
    peak = peak_solver_bytes(
        find_provider("plain", PROVIDERS), case, dtype=torch.float32, threads=1
    )
    state = 4 * 100_000 * 4
    # 10 pairs (u, v), then z, best, residual, step and w; temporaries come and go.
    assert 25 * state <= peak <= 32 * state
