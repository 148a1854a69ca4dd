"""Hostile calls of every op on every backend: refused, or harmless and the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from deq_kernels.ops import OPS
from python_tests.hostile.calls import check
from python_tests.hostile.valid_calls import VALID_CALLS
from python_tests.ops.conftest import running

# Where Triton is interpreted, an accepted call takes tens of milliseconds.
COUNTS = {"native": 600, "reference": 200, "triton": 60}


def test_every_op_has_a_valid_call() -> None:
    assert set(VALID_CALLS) == set(OPS)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.filterwarnings("ignore:.*resize:UserWarning")
def test_hostile_calls(name: str) -> None:
    with running(name), np.errstate(all="ignore"):
        accepted = sum(
            check(seed, guarded=True, large=name == "native", reads=name != "triton")
            for seed in range(COUNTS[name])
        )
    # Both kinds are there.
    assert COUNTS[name] / 5 < accepted < COUNTS[name] * 4 / 5
