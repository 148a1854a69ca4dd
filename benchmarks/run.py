"""What a run of any suite begins with, and how it says what it is doing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

import torch

from .device import Device
from .machine import commit as commit_of_checkout
from .provider import Provider

Say = Callable[[str], None]
"""Called with one line of progress at a time."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def check_settings(
    cases: Sequence[object], providers: Sequence[Provider[Any]], *, dtype: str, rounds: int
) -> None:
    """Raise ValueError unless there is something to measure, and each provider once."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    if not cases or not providers:
        raise ValueError("a run needs at least one case and one provider, but got none")
    names = [provider.name for provider in providers]
    if len(set(names)) < len(names):
        raise ValueError(
            f"every provider is measured once, but got {', '.join(names)}; name each one once"
        )
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, but got {rounds}")


def origin(
    providers: Sequence[Provider[Any]],
    device: Device,
    *,
    dtype: str,
    rounds: int,
    commit: str | None,
    tests: Literal["passed", "failed"] | None,
) -> dict[str, Any]:
    """The fields of a report that say where, when and with what, but for its schema."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or commit_of_checkout(),
        "machine": device.describe(),
        "versions": device.versions(),
        "dtype": dtype,
        "rounds": rounds,
        "providers": {provider.name: provider.description for provider in providers},
        "tests": tests,
    }


def prefixed(say: Say, prefix: str) -> Say:
    """``say`` with something before every line."""
    return lambda line: say(prefix + line)
