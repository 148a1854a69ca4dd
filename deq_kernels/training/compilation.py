"""The cell under torch.compile."""

from __future__ import annotations

import torch
from torch import nn

from deq_kernels.layer import DEQ

VERSIONS = 32
"""Compiled forms of one cell: with and without autograd, in training and evaluation, for full and
other batches, unrolled and solved. With torch's own limit of 8 the last ones would not be compiled.
"""


def compile_cell(layer: DEQ | None) -> None:
    """Evaluate the cell of a layer through torch.compile, in place; its state keeps its names.

    Raises:
        ValueError: there is no layer, or its cell is no module.
    """
    cell = None if layer is None else layer.cell
    if not isinstance(cell, nn.Module):
        raise ValueError(
            "machine.compile needs a model with a DEQ layer whose cell is a module, but this one "
            "has none; leave it out"
        )
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, VERSIONS)
    cell.compile()
