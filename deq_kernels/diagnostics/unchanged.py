"""Leave a module and the random number generators as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore on exit what evaluating the module may have changed, also after an error.

    That is, for it and all modules within: buffers (their content too), the training flag and
    every other attribute that was assigned; and torch's global generators, of the CPU and of
    `device`. Parameters and their gradients are not written by an evaluation. An object held in an
    attribute and changed in place stays changed.
    """
    modules = list(module.modules())
    attributes = [dict(part.__dict__) for part in modules]
    buffers = [dict(part._buffers) for part in modules]
    contents = [
        (buffer, buffer.detach().clone())
        for held in buffers
        for buffer in held.values()
        if buffer is not None
    ]
    accelerator = device.type not in ("cpu", "meta")
    with torch.random.fork_rng(
        devices=[device] if accelerator else [], device_type=device.type if accelerator else "cuda"
    ):
        try:
            yield
        finally:
            for part, attribute, held in zip(modules, attributes, buffers, strict=True):
                part.__dict__.clear()
                part.__dict__.update(attribute)
                part._buffers.clear()
                part._buffers.update(held)
            with torch.no_grad():
                for buffer, content in contents:
                    # Writing what is there already would only make autograd think it changed.
                    if not torch.equal(buffer, content):
                        buffer.copy_(content)
