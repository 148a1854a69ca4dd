"""Structured cells: a whole fixed-point iteration in one call."""

from deq_kernels.ops.cells.activations import NAMES, Activation, slope, value
from deq_kernels.ops.cells.norms import NormKind
from deq_kernels.ops.cells.op import iterate_

__all__ = ["NAMES", "Activation", "NormKind", "iterate_", "slope", "value"]
