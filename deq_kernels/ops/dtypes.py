"""Which dtypes a state and its history may have, and what sums over them are taken in."""

from __future__ import annotations

import torch

STATE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 states, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_state_dtype(dtype: torch.dtype) -> None:
    """Raise TypeError unless `dtype` can hold a state."""
    if dtype not in STATE_DTYPES:
        names = ", ".join(str(d) for d in STATE_DTYPES)
        raise TypeError(f"A state must be one of {names}; got {dtype}. Convert it with .to(dtype).")


def resolve_history_dtype(
    state_dtype: torch.dtype, history_dtype: torch.dtype | None
) -> torch.dtype:
    """The dtype the directions are stored in: the state's own, bfloat16 or float32."""
    if history_dtype is None:
        return state_dtype
    allowed = (state_dtype, torch.bfloat16, torch.float32)
    if history_dtype not in allowed:
        names = ", ".join(str(d) for d in dict.fromkeys(allowed))
        raise TypeError(
            f"history_dtype must be one of {names} for a {state_dtype} state; got {history_dtype}."
        )
    return history_dtype
