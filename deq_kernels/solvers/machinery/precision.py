"""What relative residuals the working precision of a solve can show.

f(z) in a floating-point format is known to about its unit eps, the distance from 1 to the next
number: a relative residual below eps says nothing about the map that is meant, and f's rounding
alone may keep it there for ever. So rtol is never below eps. The formats that f computes in are
those of the state and of autocast; where a recorded f is multiplied with later, as in the adjoint
equation, the format is that of the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_recorded: ContextVar[torch.dtype | None] = ContextVar("recorded", default=None)


def working_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """The coarsest format that f works in, for a state of `dtype`, as things stand."""
    dtypes = [dtype]
    # Autocast leaves float64 as it is.
    if dtype != torch.float64 and torch.is_autocast_enabled(device_type):
        dtypes.append(torch.get_autocast_dtype(device_type))
    recorded = _recorded.get()
    if recorded is not None:
        dtypes.append(recorded)
    return max(dtypes, key=lambda one: torch.finfo(one).eps)


def visible_rtol(rtol: float, dtype: torch.dtype, device_type: str) -> float:
    """rtol, or the unit of the working precision where that is larger; 0 stays 0.

    Args:
        rtol: as asked for; 0 asks for all steps.
        dtype: of the state.
        device_type: where it lives.
    """
    if rtol == 0:
        return rtol
    return max(rtol, torch.finfo(working_dtype(dtype, device_type)).eps)


@contextmanager
def recorded_in(dtype: torch.dtype) -> Iterator[None]:
    """Solves inside of the block multiply with an f that was recorded in `dtype`."""
    token = _recorded.set(dtype)
    try:
        yield
    finally:
        _recorded.reset(token)
