"""A solver's step as a function of f(z) alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def bind_step(
    call: Callable[..., None], z: Tensor, arguments: tuple[Any, ...]
) -> Callable[[Tensor], None]:
    """`call(f_z, *arguments)` of any f(z) [batch, dim].

    A map may return its z, or rows of it. The step writes to z while it reads f(z), so that it
    takes a copy then.

    Args:
        call: the op.
        z: the iterates, among the arguments.
        arguments: of the op, all but the first.
    """
    begin = z.data_ptr()
    end = begin + z.nbytes

    def step(f_z: Tensor) -> None:
        if begin <= f_z.data_ptr() < end:
            f_z = f_z.clone(memory_format=torch.contiguous_format)
        call(f_z if f_z.stride(1) == 1 else f_z.contiguous(), *arguments)

    return step
