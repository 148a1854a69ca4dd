"""The norms that a structured cell is judged by; `csrc/algebra/activation.h` numbers the same."""

from __future__ import annotations

from enum import IntEnum

import torch


class NormKind(IntEnum):
    """Which norm of f(z) − z and f(z) the stopping rule takes of a sample."""

    TWO = 0
    """Of all elements together."""
    MAX = 1
    """The largest magnitude."""
    ROWS = 2
    """The largest 2-norm of a row. Each row has to meet the tolerance for itself, so that those
    with small states have their digits too. Where each row is a sample this is `TWO`."""


LEAST_CHANGE = {torch.float32: 2.0**-126, torch.float64: 2.0**-500}
"""By rows, a change of at most this much counts as none, so that a row whose elements have lost
their precision, or vanish while f is repeated, does not keep its sample from converging. The
smallest normal number, and in float64 the root of about that, as norms are squared."""
