"""The cell under torch.compile."""

from __future__ import annotations

from torch import nn

from deq_kernels.layer import DEQ


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
    cell.compile()
