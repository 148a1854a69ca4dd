"""The sparse matrix of a graph cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deq_kernels.cells.pattern import Compressed, Graphs, Pattern
from deq_kernels.ops.dtypes import check_state_dtype
from deq_kernels.options import check_flag

INDEX_DTYPES = (torch.int64, torch.int32)


class Adjacency:
    """A sparse matrix A [N, N] over the nodes of one or many graphs.

    An entry A[i, j] carries node i's features to node j, as in X = φ(W X A + B) of IGNN (Gu et al.
    2020), whose X has nodes for columns: what X A has at node j is Σ_i x_i A[i, j]. A
    directed A is not its transpose; a solve multiplies with Aᵀ from the left of the node-major
    state, its adjoint with A, and both are kept in compressed rows.

    Build one with `from_coo`, `from_csr` or `from_graphs`. Entries that share a place add up.

    Attributes:
        values: [nnz], in the order in which the entries were given. They may require a gradient.
    """

    __slots__ = ("_order", "pattern", "values")

    def __init__(self, pattern: Pattern, order: Tensor, values: Tensor) -> None:
        self.pattern = pattern
        """The places of the entries of S = Aᵀ."""
        self.values = values
        self._order = order

    @classmethod
    def from_coo(
        cls,
        index: Tensor,
        values: Tensor | None = None,
        *,
        nodes: int,
        graph_ptr: Tensor | None = None,
        symmetric: bool | None = False,
    ) -> Adjacency:
        """From a list of entries, in any order.

        Args:
            index: [2, nnz] int64 or int32; column e says that values[e] belongs to
                A[index[0, e], index[1, e]], an edge from node index[0, e] to node index[1, e].
            values: [nnz] float64, float32, float16 or bfloat16; None for ones of torch's default
                dtype.
            nodes: N.
            graph_ptr: [G + 1] int64 or int32: graph g has the nodes graph_ptr[g] up to, and
                without, graph_ptr[g + 1]; a graph may be empty. None for one graph of all nodes.
            symmetric: A = Aᵀ, so that one copy serves both. Checked. Only for values that require
                no gradient, as a change of one value would break the symmetry. None to look whether
                it holds, and go by that.

        Raises:
            TypeError: a tensor has the wrong dtype or device, or an argument is no tensor.
            ValueError: a shape or an index is wrong, an edge joins two graphs, or `symmetric` is
                not true.
        """
        _check_index(index)
        if values is None:
            values = torch.ones(index.shape[1], device=index.device)
        _check_values(values, index)
        _check_nodes(nodes, index)
        if symmetric is not None:
            check_flag("symmetric", symmetric)
        ptr = _graph_ptr(graph_ptr, nodes, index.device)
        longest = int(ptr.diff().max()) if len(ptr) > 1 else 0
        graphs = Graphs.of(ptr, rows=nodes, longest=longest)
        source, target = index.long().unbind()
        _check_same_graph(source, target, graphs)
        rows, order = Compressed.of(target, source, nodes)
        columns, other = Compressed.of(source, target, nodes)
        if symmetric:
            _check_no_gradient(values)
        if symmetric or (symmetric is None and not values.requires_grad):
            holds = _is_symmetric(rows, columns, values[order], values[other])
            if symmetric:
                _check_symmetric(holds)
            symmetric = holds
        if symmetric:
            return cls(Pattern(rows, rows, None, None, graphs), order, values)
        # Values of A = values[other] = (values[order])[inverse of order][other].
        to_columns, to_rows = _inverse(order)[other], _inverse(other)[order]
        return cls(Pattern(rows, columns, to_columns, to_rows, graphs), order, values)

    @classmethod
    def from_csr(
        cls, matrix: Tensor, *, graph_ptr: Tensor | None = None, symmetric: bool | None = False
    ) -> Adjacency:
        """From A as a torch tensor in compressed rows (`torch.sparse_csr`).

        Args:
            matrix: A, [N, N]. Its stored entries become the entries, zeros among them too.
            graph_ptr: see `from_coo`.
            symmetric: see `from_coo`.

        Raises:
            TypeError: see `from_coo`; or the matrix has another layout.
            ValueError: see `from_coo`; or the matrix requires a gradient, which torch does not hand
                from a matrix to its values: use `with_values` for values that require one.
        """
        if not isinstance(matrix, Tensor) or matrix.layout != torch.sparse_csr:
            kind = matrix.layout if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(
                f"matrix must be a tensor of layout torch.sparse_csr; got {kind}. Convert it with "
                "matrix.to_sparse_csr(), or use from_coo."
            )
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, [N, N]; got {list(matrix.shape)}.")
        if matrix.requires_grad:
            raise ValueError(
                "matrix must not require a gradient, as torch does not hand one from a matrix to "
                "its values. Detach it, and give values that require one with "
                "adjacency.with_values(values)."
            )
        nodes = matrix.shape[0]
        counts = matrix.crow_indices().long().diff()
        row = torch.repeat_interleave(torch.arange(nodes, device=counts.device), counts)
        index = torch.stack([row, matrix.col_indices().long()])
        return cls.from_coo(
            index, matrix.values(), nodes=nodes, graph_ptr=graph_ptr, symmetric=symmetric
        )

    @classmethod
    def from_graphs(cls, graphs: Sequence[Adjacency]) -> Adjacency:
        """Many into one, block by block on the diagonal: a batch.

        Args:
            graphs: at least one; of one dtype and device. Those that hold several graphs keep them
                apart. The result is symmetric where all of them are.

        Raises:
            TypeError: an element is no `Adjacency`, or dtypes or devices differ.
            ValueError: there is none.
        """
        graphs = list(graphs)
        if not graphs:
            raise ValueError("graphs must hold at least one Adjacency; got none.")
        for graph in graphs:
            if not isinstance(graph, Adjacency):
                raise TypeError(
                    f"graphs must hold Adjacency objects; got {type(graph).__name__}. Build each "
                    "with Adjacency.from_coo or Adjacency.from_csr."
                )
            if (graph.dtype, graph.device) != (graphs[0].dtype, graphs[0].device):
                raise TypeError(
                    "graphs must share one dtype and device; got "
                    f"{graphs[0].dtype} on {graphs[0].device}, and {graph.dtype} on "
                    f"{graph.device}. Convert them with .to(device, dtype)."
                )
        symmetric = all(graph.symmetric for graph in graphs)
        patterns = [graph.pattern for graph in graphs]
        nodes = [graph.nodes for graph in graphs]
        entries = [len(graph.values) for graph in graphs]
        rows = _join([pattern.rows for pattern in patterns], nodes, entries)
        columns, to_columns, to_rows = rows, None, None
        if not symmetric:
            columns = _join([pattern.columns for pattern in patterns], nodes, entries)
            complete = [_with_permutations(graph) for graph in graphs]
            to_columns = _shifted([both[0] for both in complete], entries)
            to_rows = _shifted([both[1] for both in complete], entries)
        ptr = _joined_starts([pattern.graphs.ptr for pattern in patterns], nodes)
        order = _shifted([graph._order for graph in graphs], entries)
        values = torch.cat([graph.values for graph in graphs])
        longest = max(pattern.graphs.longest for pattern in patterns)
        together = Graphs.of(ptr, rows=sum(nodes), longest=longest)
        return cls(Pattern(rows, columns, to_columns, to_rows, together), order, values)

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.pattern.rows.crow) - 1

    @property
    def symmetric(self) -> bool:
        """Whether one copy serves A and Aᵀ."""
        return self.pattern.to_columns is None

    @property
    def graph_ptr(self) -> Tensor:
        """[G + 1] int64, where each graph begins."""
        return self.pattern.graphs.ptr

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.values.device

    def row_values(self) -> Tensor:
        """The values in the order of `pattern.rows`, [nnz]. Differentiable."""
        return self.values.index_select(0, self._order)

    def check_differentiable(self) -> None:
        """Raise ValueError if it is symmetric and its values require a gradient all the same."""
        if self.symmetric and self.values.requires_grad:
            raise ValueError(
                "A symmetric adjacency must have values that require no gradient; got values with "
                "requires_grad=True. Build it without symmetric=True."
            )

    def with_values(self, values: Tensor) -> Adjacency:
        """The same places with other values; nothing is sorted again.

        Args:
            values: [nnz], in the order of `values`, on the same device.

        Raises:
            TypeError: they have no state's dtype, or another device.
            ValueError: they have another shape; or the matrix is `symmetric`, which other values
                may not be.
        """
        if self.symmetric:
            raise ValueError(
                "with_values needs an Adjacency that keeps A and its transpose; this one has "
                "symmetric=True. Build it without."
            )
        _check_values(values, self._order[None])
        return Adjacency(self.pattern, self._order, values)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Adjacency:
        """The same on another device, or with values of another dtype. Differentiable.

        Raises:
            TypeError: `dtype` is none of a state's.
        """
        if dtype is not None:
            check_state_dtype(dtype)
        values = self.values.to(device=device, dtype=dtype)
        pattern = self.pattern.to(values.device)
        return Adjacency(pattern, self._order.to(values.device), values)

    def __repr__(self) -> str:
        return (
            f"Adjacency(nodes={self.nodes}, entries={len(self.values)}, "
            f"graphs={len(self.pattern.graphs)}, symmetric={self.symmetric}, dtype={self.dtype}, "
            f"device='{self.device}')"
        )


def _check_index(index: Tensor) -> None:
    if not isinstance(index, Tensor) or index.dtype not in INDEX_DTYPES:
        kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 or int32 tensor [2, nnz]; got {kind}.")
    if index.ndim != 2 or index.shape[0] != 2:
        raise ValueError(
            f"index must be [2, nnz], rows of A and columns of A; got {list(index.shape)}. "
            "Transpose a list of pairs."
        )


def _check_values(values: Tensor, index: Tensor) -> None:
    """Raise unless there is one value per column of `index`, on its device."""
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor [nnz]; got {type(values).__name__}.")
    check_state_dtype(values.dtype)
    if values.shape != index.shape[1:]:
        raise ValueError(
            f"values must hold one number per entry, [{index.shape[1]}]; got {list(values.shape)}."
        )
    if values.device != index.device:
        raise TypeError(
            f"values must be on the device of index, {index.device}; got {values.device}."
        )


def _check_nodes(nodes: int, index: Tensor) -> None:
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 0:
        raise ValueError(f"nodes must be a whole number, at least 0; got {nodes!r}.")
    if not index.numel():
        return
    smallest, largest = int(index.min()), int(index.max())
    if smallest < 0 or largest >= nodes:
        raise ValueError(
            f"index must hold numbers of nodes, 0 to {nodes - 1}; got {smallest} to {largest}. "
            "Pass the number of all nodes, isolated ones too."
        )


def _graph_ptr(graph_ptr: Tensor | None, nodes: int, device: torch.device) -> Tensor:
    if graph_ptr is None:
        return torch.tensor([0, nodes], device=device)
    if not isinstance(graph_ptr, Tensor) or graph_ptr.dtype not in INDEX_DTYPES:
        kind = graph_ptr.dtype if isinstance(graph_ptr, Tensor) else type(graph_ptr).__name__
        raise TypeError(f"graph_ptr must be an int64 or int32 tensor [G + 1]; got {kind}.")
    if graph_ptr.device != device:
        raise TypeError(f"graph_ptr must be on {device}, like index; got {graph_ptr.device}.")
    if graph_ptr.ndim != 1 or not len(graph_ptr):
        raise ValueError(
            f"graph_ptr must be [G + 1], one number more than graphs; got {list(graph_ptr.shape)}."
        )
    ptr = graph_ptr.long()
    if int(ptr[0]) != 0 or int(ptr[-1]) != nodes or bool((ptr.diff() < 0).any()):
        raise ValueError(
            f"graph_ptr must rise from 0 to the number of nodes, {nodes}; got {ptr.tolist()}. It "
            "is the cumulative sum of the graphs' sizes, with a 0 in front."
        )
    return ptr


def _check_same_graph(source: Tensor, target: Tensor, graphs: Graphs) -> None:
    between = (graphs.of_row[source] != graphs.of_row[target]).nonzero().flatten()
    if len(between):
        entry = int(between[0])
        i, j = int(source[entry]), int(target[entry])
        raise ValueError(
            f"An edge must stay in its graph; got entry {entry} from node {i} of graph "
            f"{int(graphs.of_row[i])} to node {j} of graph {int(graphs.of_row[j])}. "
            "Shift each graph's indices by graph_ptr[g], or leave graph_ptr out."
        )


def _check_no_gradient(values: Tensor) -> None:
    if values.requires_grad:
        raise ValueError(
            "symmetric=True needs values that require no gradient, as the gradient of one entry "
            "has to know Aᵀ apart from A; got values with requires_grad=True. Leave symmetric out."
        )


def _is_symmetric(rows: Compressed, columns: Compressed, values: Tensor, others: Tensor) -> bool:
    """Whether Aᵀ (its rows, and values in their order) is A (columns, others), up to rounding."""
    close = 16.0 * torch.finfo(values.dtype).eps
    same = torch.equal(rows.crow, columns.crow) and torch.equal(rows.col, columns.col)
    return same and torch.allclose(values, others, rtol=close, atol=0.0)


def _check_symmetric(holds: bool) -> None:
    if not holds:
        raise ValueError(
            "symmetric=True needs A[i, j] = A[j, i] for all entries, up to rounding; got an A for "
            "which that does not hold. Leave symmetric out, or give every edge in both directions, "
            "and once."
        )


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse


def _with_permutations(adjacency: Adjacency) -> tuple[Tensor, Tensor]:
    """`to_columns` and `to_rows`; a symmetric pattern spares them, so they are found here.

    There both are the same, as (i, j) changes places with (j, i).
    """
    pattern = adjacency.pattern
    if pattern.to_columns is not None and pattern.to_rows is not None:
        return pattern.to_columns, pattern.to_rows
    rows = pattern.rows
    to_columns = Compressed.order_of(rows.col, rows.row, adjacency.nodes)
    return to_columns, to_columns


def _join(parts: list[Compressed], nodes: list[int], entries: list[int]) -> Compressed:
    return Compressed(
        _joined_starts([part.crow for part in parts], entries),
        _shifted([part.col for part in parts], nodes),
        _shifted([part.row for part in parts], nodes),
    )


def _shifted(parts: list[Tensor], sizes: list[int]) -> Tensor:
    """Indices into a concatenation of things of these sizes."""
    shift, shifted = 0, []
    for part, size in zip(parts, sizes, strict=True):
        shifted.append(part + shift)
        shift += size
    return torch.cat(shifted)


def _joined_starts(parts: list[Tensor], sizes: list[int]) -> Tensor:
    """The starts of a concatenation; each part ends where the next one starts."""
    first = parts[0][:1]
    return torch.cat([first, _shifted([part[1:] for part in parts], sizes)])
