"""Structured cells, solved in one op: z = φ(W z + u), and X = φ(W X A + B) over graphs.

Their Jacobians are known, so neither the solve nor its adjoint needs autograd or a launch per step.

    from deq_kernels.cells import Adjacency, solve_dense, solve_graph

    z = solve_dense(u, weight, activation="tanh")
    x = solve_graph(b, weight, Adjacency.from_coo(edges, nodes=len(b)), activation="relu")
"""

from deq_kernels.cells.adjacency import Adjacency
from deq_kernels.cells.dense import solve_dense
from deq_kernels.cells.graph import solve_graph
from deq_kernels.cells.normalized import normalized
from deq_kernels.cells.propagate import propagate

__all__ = ["Adjacency", "normalized", "propagate", "solve_dense", "solve_graph"]
