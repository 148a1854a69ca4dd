"""Structured cells: f(z) = φ(W z + b), and f of X = φ(W X A + B) over graphs.

Their Jacobians are known, so neither the solve nor its adjoint needs autograd or a launch per step.

    from deq_kernels.cells import Adjacency, DenseCell, GraphCell

    adjacency = Adjacency.from_coo(edges, nodes=len(b))
    layer = dk.DEQ(GraphCell(weight, adjacency, activation="relu"), solver=dk.FixedPoint())
    z = layer(torch.zeros_like(b), b)
"""

from deq_kernels.cells.adjacency import Adjacency
from deq_kernels.cells.dense import DenseCell
from deq_kernels.cells.graph import GraphCell
from deq_kernels.cells.normalized import normalized
from deq_kernels.cells.propagate import propagate
from deq_kernels.cells.structured import StructuredCell

__all__ = ["Adjacency", "DenseCell", "GraphCell", "StructuredCell", "normalized", "propagate"]
