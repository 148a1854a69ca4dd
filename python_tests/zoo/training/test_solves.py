"""What a run says of its solves, once."""

from __future__ import annotations

import torch

import deq_kernels as dk
from deq_zoo.solves import SolveTally


def solved(max_steps: int) -> dk.Solution:
    slopes = torch.tensor([[0.0], [0.5], [0.9], [0.9]])
    return dk.FixedPoint(max_steps=max_steps, rtol=1e-3)(
        lambda z: slopes * z + 1, torch.zeros(4, 1)
    )


def test_nothing_is_said_while_all_converge() -> None:
    tally = SolveTally(torch.device("cpu"))
    assert tally.note() is None
    tally(solved(100), "forward")
    assert tally.note() is None


def test_a_note_is_said_once() -> None:
    tally = SolveTally(torch.device("cpu"))
    tally(solved(100), "forward")
    tally(solved(20), "adjoint")
    tally(solved(100), "adjoint")
    note = tally.note()
    assert note is not None
    assert note.startswith(
        "note: adjoint solves left 25% of the samples above the tolerance (25% out of steps, "
        "0% stalled, 0% diverged); "
    )
    assert "forward solves" not in note
    tally(solved(20), "forward")
    assert tally.note() is None
