"""One product with the sparse matrix of a graph cell."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.cells.adjacency import Adjacency
from deq_kernels.cells.products import spread


def propagate(x: Tensor, adjacency: Adjacency) -> Tensor:
    """Aᵀ x: what each node receives, y_j = Σ_i A[i, j] x_i. It is X A of a feature-major X = xᵀ.

    Differentiable as often as wanted in x and in the values of A, which may be directed. A row's
    sum is taken in the order of its entries, whatever else is in the batch.

    Args:
        x: [N, n], one row per node, dtype and device of the adjacency's values.
        adjacency: A, [N, N].

    Returns:
        [N, n]. Nodes that no edge leads to have rows of zeros.

    Raises:
        TypeError: an argument is not of its kind, or dtypes or devices differ.
        ValueError: the number of rows is not that of the nodes, or a symmetric adjacency has values
            that require a gradient.
    """
    if not isinstance(adjacency, Adjacency):
        raise TypeError(
            f"adjacency must be an Adjacency; got {type(adjacency).__name__}. Build one with "
            "Adjacency.from_coo, Adjacency.from_csr or Adjacency.from_graphs."
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [N, n]; got {type(x).__name__}.")
    if x.ndim != 2 or len(x) != adjacency.nodes:
        raise ValueError(
            f"x must have one row per node of the adjacency, [{adjacency.nodes}, n]; got "
            f"{list(x.shape)}. States are node-major."
        )
    if (x.dtype, x.device) != (adjacency.dtype, adjacency.device):
        raise TypeError(
            f"x must have the dtype and device of the adjacency, {adjacency.dtype} on "
            f"{adjacency.device}; got {x.dtype} on {x.device}. Convert one of them."
        )
    adjacency.check_differentiable()
    return spread(x, adjacency.pattern, adjacency.row_values())
