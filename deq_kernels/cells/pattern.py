"""Where a sparse matrix has entries, by rows and by columns, and which rows belong together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Compressed:
    """The places of a matrix's entries in compressed rows.

    Attributes:
        crow: where each row begins, [N + 1] int64.
        col: the column of each entry, [nnz] int64, in the order that `crow` counts.
        row: the row of each entry, [nnz] int64.
    """

    crow: Tensor
    col: Tensor
    row: Tensor

    @classmethod
    def of(cls, row: Tensor, col: Tensor, nodes: int) -> tuple[Compressed, Tensor]:
        """Entries in any order, sorted by row and column; and the order that sorts them."""
        order = cls.order_of(row, col, nodes)
        row, col = row[order], col[order]
        crow = row.new_zeros(nodes + 1)
        crow[1:] = torch.cumsum(torch.bincount(row, minlength=nodes), 0)
        return cls(crow, col, row), order

    @staticmethod
    def order_of(row: Tensor, col: Tensor, nodes: int) -> Tensor:
        """What sorts entries by row and column."""
        return torch.argsort(row * nodes + col, stable=True)

    def to(self, device: torch.device) -> Compressed:
        """The same on another device."""
        return Compressed(self.crow.to(device), self.col.to(device), self.row.to(device))


@dataclass(frozen=True, slots=True)
class Graphs:
    """Which rows of a state are one sample.

    Attributes:
        ptr: where each graph begins, [G + 1] int64.
        of_row: the graph of each row, [N] int64.
        longest: rows of the largest graph, which a device would have to be asked for.
    """

    ptr: Tensor
    of_row: Tensor
    longest: int

    @classmethod
    def of(cls, ptr: Tensor, *, rows: int, longest: int) -> Graphs:
        """From the boundaries, and what is known of them."""
        graphs = torch.arange(len(ptr) - 1, device=ptr.device)
        of_row = torch.repeat_interleave(graphs, ptr.diff(), output_size=rows)
        return cls(ptr, of_row, longest)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def to(self, device: torch.device) -> Graphs:
        """The same on another device."""
        return Graphs(self.ptr.to(device), self.of_row.to(device), self.longest)


@dataclass(frozen=True, slots=True)
class Pattern:
    """The places of the entries of S and of Sᵀ.

    Attributes:
        rows: S in compressed rows; its values come in this order.
        columns: Sᵀ in compressed rows.
        to_columns: values of Sᵀ = values of S [to_columns]; None where both are the same numbers.
        to_rows: values of S = values of Sᵀ [to_rows].
        graphs: whose rows belong together; no entry lies between two graphs.
    """

    rows: Compressed
    columns: Compressed
    to_columns: Tensor | None
    to_rows: Tensor | None
    graphs: Graphs

    @property
    def transposed(self) -> Pattern:
        """That of Sᵀ."""
        return Pattern(self.columns, self.rows, self.to_rows, self.to_columns, self.graphs)

    def transpose(self, values: Tensor) -> Tensor:
        """The values of Sᵀ from those of S, [nnz]. Differentiable."""
        return values if self.to_columns is None else values.index_select(0, self.to_columns)

    def to(self, device: torch.device) -> Pattern:
        """The same on another device."""
        rows = self.rows.to(device)
        same = self.columns is self.rows
        return Pattern(
            rows,
            rows if same else self.columns.to(device),
            None if self.to_columns is None else self.to_columns.to(device),
            None if self.to_rows is None else self.to_rows.to(device),
            self.graphs.to(device),
        )
