"""Skipping work that no sample needs, and masks that leave none out."""

from __future__ import annotations

from torch import Tensor


def idle(samples: Tensor) -> bool:
    """Whether `samples` [batch] bool is all False, where the host can tell without waiting.

    On other devices than the CPU the answer would cost a synchronisation; there the work is done,
    masked, and this is False.
    """
    return samples.device.type == "cpu" and not bool(samples.any())


def everyone(samples: Tensor) -> bool:
    """Whether `samples` [batch] bool is all True, where the host can tell without waiting."""
    return samples.device.type == "cpu" and bool(samples.all())
