"""Keeping torch.compile out of Python that it cannot speed up."""

from __future__ import annotations

from functools import cache

import torch


@cache
def call_as_written(owner: type, method: str) -> None:
    """Let compiled code call a method of a class as it is, in place of tracing its Python.

    Replaces the method, once. Not a decorator, because torch.compiler imports the compiler, which
    takes as long as importing torch: the first object of the class pays for that, not every import
    of this package.
    """
    reason = f"{owner.__name__} takes as many steps as the values of its tensors need"
    disabled = torch.compiler.disable(getattr(owner, method), reason=reason)
    setattr(owner, method, disabled)
