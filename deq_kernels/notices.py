"""Warnings and errors of solves, and which listener receives the warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias


class UnconvergedWarning(UserWarning):
    """A layer's solve has left samples unconverged."""


class CoupledSamplesWarning(UserWarning):
    """Samples that had stopped as converged were moved from their solution by others."""


class DetachedStateWarning(UserWarning):
    """Autograd finds no way from f(z) to z, so that products with the Jacobian are zero."""


class SolveError(RuntimeError):
    """A layer's solve has left samples unconverged, and `on_solve="raise"`."""


Listener: TypeAlias = Callable[[type[Warning], str], None]
"""Receives a category and a message."""


def warn_user(category: type[Warning], message: str) -> None:
    """Warn at the line outside of this package and torch that led here."""
    warnings.warn(message, category, stacklevel=_level_of_caller())


_listener: ContextVar[Listener] = ContextVar("listener", default=warn_user)


def listener() -> Listener:
    """What receives the warnings of the solve under way; `warn_user` outside of `heard_by`."""
    return _listener.get()


@contextmanager
def heard_by(hears: Listener) -> Iterator[None]:
    """Send the warnings of solves inside the block to `hears`, in this thread."""
    token = _listener.set(hears)
    try:
        yield
    finally:
        _listener.reset(token)


def _level_of_caller() -> int:
    """The `stacklevel` for a warning given by the caller of this function."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
        level += 1
    return level


def _is_inside(module: str) -> bool:
    return module.split(".")[0] in ("deq_kernels", "torch", "contextlib")
