"""The normalised adjacency of graph convolutions."""

from __future__ import annotations

import torch

from deq_kernels.cells.adjacency import Adjacency


def normalized(adjacency: Adjacency) -> Adjacency:
    """(D + I)^(-1/2) (A + I) (D + I)^(-1/2) with D = diag(A 1), the weights that leave each node.

    It is similar to (D + I)^(-1) (A + I), whose rows are shares of 1: for an A without negative
    values its spectral radius is 1, whatever the graph and its directions. Source: Kipf and Welling
    2017, "Semi-supervised classification with graph convolutional networks", section 2.2, as IGNN
    (Gu et al. 2020) uses it.

    Args:
        adjacency: A. Its values may require a gradient, which passes through.

    Returns:
        The same graphs with a self loop more at every node, symmetric if A is.

    Raises:
        TypeError: it is no `Adjacency`.
        ValueError: the weights that leave a node sum up to −1 or less.
    """
    if not isinstance(adjacency, Adjacency):
        raise TypeError(
            f"adjacency must be an Adjacency; got {type(adjacency).__name__}. Build one with "
            "Adjacency.from_coo or Adjacency.from_csr."
        )
    adjacency.check_differentiable()
    rows = adjacency.pattern.rows
    values = adjacency.row_values()
    # S = Aᵀ: the row of an entry of S is the node that an edge leads to.
    source, target = rows.col, rows.row
    degree = values.new_ones(adjacency.nodes).index_add(0, source, values)
    if bool((degree <= 0).any()):
        raise ValueError(
            "The weights that leave a node must sum up to more than -1, as a root is taken of 1 "
            f"plus that; got a sum of {float(degree.min()) - 1.0:g}. Use magnitudes for weights."
        )
    root = degree.rsqrt()
    loops = torch.arange(adjacency.nodes, device=adjacency.device)
    # The product of the roots first, as it is the same for both directions.
    weights = torch.cat([values * (root[source] * root[target]), root * root])
    return Adjacency.from_coo(
        torch.stack([torch.cat([source, loops]), torch.cat([target, loops])]),
        weights,
        nodes=adjacency.nodes,
        graph_ptr=adjacency.graph_ptr,
        symmetric=adjacency.symmetric,
    )
