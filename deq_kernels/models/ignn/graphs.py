"""Graphs with features and labels, one by one or many in one block-diagonal batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deq_kernels.cells import Adjacency, normalized


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """One graph or many, N nodes and G graphs in all; edges never join two of them.

    Args:
        adjacency: A with the graphs' boundaries.
        features: [N, p], one row per node; None for unit vectors, p = N: node i has the i-th one.
        labels: of nodes, [N] or [N, C], or of graphs, [G] or [G, C]; classes as int64, or C
            labels that are 0 or 1 each, in the dtype of the features. None where they are unknown.
        counted: [N] bool, the nodes whose labels are to be learned or predicted; None for all.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: numbers of rows do not fit.
    """

    adjacency: Adjacency
    features: Tensor | None = None
    labels: Tensor | None = None
    counted: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adjacency, Adjacency):
            raise TypeError(
                f"adjacency must be an Adjacency; got {type(self.adjacency).__name__}. Build one "
                "with Adjacency.from_coo or Adjacency.from_csr."
            )
        nodes = self.adjacency.nodes
        if self.features is not None:
            _check_rows("features", self.features, (nodes,), f"one row per node, [{nodes}, p]")
            if self.features.ndim != 2:
                raise ValueError(f"features must be [N, p]; got {list(self.features.shape)}.")
        if self.labels is not None:
            allowed = (nodes, len(self))
            what = f"one row per node, {nodes}, or per graph, {len(self)}"
            _check_rows("labels", self.labels, allowed, what)
        if self.counted is not None:
            _check_rows("counted", self.counted, (nodes,), f"one bool per node, [{nodes}]")
            if self.counted.dtype != torch.bool:
                raise TypeError(f"counted must hold bools; got {self.counted.dtype}.")

    def __len__(self) -> int:
        return len(self.adjacency.graph_ptr) - 1

    @property
    def width(self) -> int:
        """p, the number of features of a node."""
        return self.adjacency.nodes if self.features is None else self.features.shape[1]

    def normalized(self) -> Graphs:
        """With (D + I)^(-1/2) (A + I) (D + I)^(-1/2) in the place of A, whose radius is 1."""
        return replace(self, adjacency=normalized(self.adjacency))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Graphs:
        """On another device, or with numbers of another floating-point dtype; classes stay."""

        def moved(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        return Graphs(
            adjacency=self.adjacency.to(device, dtype),
            features=moved(self.features),
            labels=moved(self.labels),
            counted=moved(self.counted),
        )

    @staticmethod
    def join(graphs: Sequence[Graphs]) -> Graphs:
        """Many into one, block by block.

        Args:
            graphs: at least one; all with features of one width, or a single one without; with
                labels or without.

        Raises:
            TypeError: dtypes or devices differ.
            ValueError: there is none, or they do not fit together.
        """
        graphs = list(graphs)
        if not graphs:
            raise ValueError("graphs must hold at least one Graphs; got none.")
        if len(graphs) == 1:
            return graphs[0]
        widths = {None if one.features is None else one.features.shape[1] for one in graphs}
        if len(widths) > 1 or None in widths:
            raise ValueError(
                "Graphs that are joined must have features of one width each; got widths "
                f"{sorted(map(str, widths))}. Unit vectors (features=None) tell apart the nodes of "
                "one graph only."
            )
        parts = [_column(graphs, name) for name in ("features", "labels", "counted")]
        features, labels, counted = (None if part is None else torch.cat(part) for part in parts)
        adjacency = Adjacency.from_graphs([one.adjacency for one in graphs])
        return Graphs(adjacency=adjacency, features=features, labels=labels, counted=counted)

    @staticmethod
    def from_geometric(data: Any) -> Graphs:
        """From a torch_geometric `Data` or `Batch`, or anything with the same attributes.

        Reads `edge_index` [2, E], `num_nodes`, `x` [N, p] or None, `y` or None (one class per
        row as [rows, 1] too), `edge_weight` [E] or None for ones, and `ptr` [G + 1] where `data` is
        a batch. Edge features (`edge_attr`) have no place in A.

        Raises:
            TypeError: an attribute is missing, or no tensor.
            ValueError: shapes do not fit.
        """
        edges = getattr(data, "edge_index", None)
        if not isinstance(edges, Tensor):
            raise TypeError(
                "data must be a torch_geometric Data, or have its attributes: edge_index, and "
                f"num_nodes or x; got {type(data).__name__}."
            )
        x = getattr(data, "x", None)
        nodes = getattr(data, "num_nodes", None)
        if nodes is None and x is not None:
            nodes = len(x)
        if nodes is None:
            raise TypeError("data must say how many nodes there are; got neither num_nodes nor x.")
        weight = getattr(data, "edge_weight", None)
        if weight is None:
            dtype = torch.get_default_dtype() if x is None else x.dtype
            weight = torch.ones(edges.shape[1], dtype=dtype, device=edges.device)
        adjacency = Adjacency.from_coo(
            edges,
            weight,
            nodes=int(nodes),
            graph_ptr=getattr(data, "ptr", None),
            symmetric=None,
        )
        labels = getattr(data, "y", None)
        if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        return Graphs(adjacency=adjacency, features=x, labels=labels)


def _check_rows(name: str, tensor: object, allowed: tuple[int, ...], contract: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be None or a tensor; got {type(tensor).__name__}.")
    if tensor.ndim < 1 or len(tensor) not in allowed:
        raise ValueError(f"{name} must have {contract}; got {list(tensor.shape)}.")


def _column(graphs: list[Graphs], name: str) -> list[Tensor] | None:
    """One attribute of all graphs, or None where none has it."""
    parts = [getattr(one, name) for one in graphs]
    absent = [part is None for part in parts]
    if all(absent):
        return None
    if any(absent):
        raise ValueError(
            f"Graphs that are joined must all have {name}, or none of them; got "
            f"{len(parts) - sum(absent)} of {len(parts)} with."
        )
    return parts
