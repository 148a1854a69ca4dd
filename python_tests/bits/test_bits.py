"""The bits of every answer are those that were recorded (`record.py`, which says how to anew)."""

from __future__ import annotations

import json

import pytest
import torch

from python_tests.bits.record import KERNELS, RECORDED, kernels_in_force, key_of, measured_with
from python_tests.bits.values import digest, pattern

Cases = dict[str, dict[str, str]]


def changes(recorded: Cases, measured: Cases) -> list[str]:
    """case: parts, of those that differ or that only one of both has."""
    found = []
    for name in sorted(recorded.keys() | measured.keys()):
        before, now = recorded.get(name, {}), measured.get(name, {})
        parts = [
            part for part in sorted(before.keys() | now.keys()) if before.get(part) != now.get(part)
        ]
        if parts:
            found.append(f"{name}: {', '.join(parts)}")
    return found


@pytest.mark.parametrize("kernels", KERNELS)
def test_answers_have_the_recorded_bits(kernels: str) -> None:
    key = key_of(kernels)
    recorded = json.loads(RECORDED.read_text())
    if key not in recorded:
        pytest.skip(f"nothing was recorded for {key}")
    if kernels != "reference" and kernels_in_force() == "reference":
        pytest.skip("no compiled CPU library is in force")
    had, measured = measured_with(kernels)
    assert had == kernels
    changed = changes(recorded[key], measured)
    assert not changed, f"{len(changed)} cases with {key} have other bits:\n" + "\n".join(changed)


def test_one_bit_is_a_change() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = pattern(3, 5, dtype=dtype)
        y = x.clone()
        y.reshape(-1).view(torch.uint8)[7] ^= 1
        assert digest(x) == digest(x.clone()) != digest(y)
        assert digest(x) != digest(x.reshape(5, 3))


def test_every_difference_is_named() -> None:
    recorded = {"same": {"z": "1"}, "other": {"z": "1", "trace": "2"}, "gone": {"z": "1"}}
    measured = {"same": {"z": "1"}, "other": {"z": "1", "trace": "3"}, "new": {"z": "1"}}
    assert changes(recorded, measured) == ["gone: z", "new: z", "other: trace"]
