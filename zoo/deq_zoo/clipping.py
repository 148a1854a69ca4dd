"""Gradient clipping: all parameters together, or each by itself."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def clip_gradients(
    parameters: Iterable[nn.Parameter], *, norm: float | None, each: float | None
) -> None:
    """Scale gradients down, in place and without waiting for a GPU.

    Args:
        parameters: those without a gradient are left out.
        norm: largest L2 norm of all gradients together; None: no limit.
        each: largest L2 norm of each parameter's gradient, applied first; None: no limit.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if each is not None:
        for parameter in trained:
            nn.utils.clip_grad_norm_(parameter, each)
    if norm is not None:
        nn.utils.clip_grad_norm_(trained, norm)
