"""The cell under torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._functorch import config as backward_options

from deq_kernels import DEQ

VERSIONS = 32
"""Compiled forms of one cell: with and without autograd, in training and evaluation, for full and
other batches, unrolled and solved. With torch's own limit of 8 the last ones would not be compiled.
"""

KEPT_BUFFERS = "donated_buffer=False"
"""Marks compiled code in torch's caches."""


def compile_cell(layer: DEQ | None) -> None:
    """Evaluate the cell of a layer through torch.compile, in place; its state keeps its names.

    Sets options of torch.compile for the whole process: see `keep_buffers`.

    Raises:
        ValueError: there is no layer, or its cell is no module.
    """
    if layer is None or not isinstance(layer.cell, nn.Module):
        raise ValueError(
            "machine.compile needs a model with a DEQ layer whose cell is a module, but this one "
            "has none; leave it out"
        )
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, VERSIONS)
    keep_buffers()
    # Shapes are few, and code for all of them at once takes many minutes to make for attention;
    # only a compact solve meets batches of any size.
    layer.cell.compile(dynamic=None if layer.solver.compact else False)


@contextmanager
def as_written() -> Iterator[None]:
    """Evaluate compiled modules as Python in the block; they can be differentiated twice then."""
    with torch.compiler.set_stance("force_eager"):
        yield


def keep_buffers() -> None:
    """Let what is compiled from now on be differentiated again and again, as adjoint solves do.

    By default a compiled backward pass overwrites what the forward pass saved for it, and refuses
    to run a second time. torch's caches on disk do not tell the two kinds of code apart, so the key
    of their entries has to.
    """
    backward_options.donated_buffer = False
    keys = torch.compiler.config
    if KEPT_BUFFERS not in keys.cache_key_tag:
        keys.cache_key_tag += KEPT_BUFFERS
