"""The graph cell X = φ(W X A + B)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from deq_kernels.cells.adjacency import Adjacency
from deq_kernels.cells.map import StructuredMap
from deq_kernels.cells.structured import StructuredCell, check_like, check_tensors


class GraphCell(StructuredCell):
    """f of X = φ(W X A + B) (IGNN: Gu et al. 2020); each graph of a batch is a sample.

        cell = GraphCell(weight, adjacency, activation="relu")
        z = dk.DEQ(cell, solver=dk.FixedPoint(max_steps=300))(torch.zeros_like(b), b)

    States are node-major: z = Xᵀ and b = Bᵀ, [N, m], one row per node, so that
    z = φ(Aᵀ z Wᵀ + b). There is one answer if ρ(|W|) ρ(|A|) < 1 and φ has slopes of at most 1 (the
    same paper, theorem 4.1 and `deq_kernels.nn.perron_frobenius_bound`), as all but gelu have.

    With ℓ = ∂L/∂z and g = φ' ⊙ w the gradients are ∂L/∂b = g, ∂L/∂W = gᵀ Aᵀ z and
    ∂L/∂A[i, j] = ⟨z_i, Wᵀ g_j⟩ at the entries of A, where w solves w = A (φ' ⊙ w) W + ℓ or is
    estimated. They hold for directed A. The layer returns f of each graph's best iterate, the value
    that the slopes of the gradient belong to. Source: docs/algebra.md, section 3.

    The compiled libraries take all steps in one call, on a GPU in one launch. Triton, which stands
    in for a CUDA library that was not built, has no graph cell: there, and under its backend, CUDA
    tensors take the PyTorch reference, which launches kernels of torch's in every step and waits
    for the device (`deq_kernels.backend_info()` says which backend serves CUDA tensors).

    Args:
        weight: see `StructuredCell`, as for the options.
        adjacency: A with the graphs' boundaries; None where every call gives one. It moves with the
            module; values that are trained are given in the call, as adjacency.with_values(...).
        norm: see `StructuredCell`. By "rows" each node has to meet the tolerance for itself, so
            that nodes with small states, far from where something is known, are as accurate as
            others. A row that changes by no more than the smallest normal number (2⁻⁵⁰⁰ in float64)
            meets it, and so does one of zeros that stays so. IGNN's published rule, max |ΔX| below
            3e-6, is norm="max" with FixedPoint(rtol=0, atol=3e-6): rows smaller than that are
            returned as they happen to be, and behind a head that divides by their norm so are
            gradients. Step by step a graph's 2-norm is measured.

    Raises:
        TypeError: `adjacency` is no `Adjacency`.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        adjacency: Adjacency | None = None,
        *,
        activation: str,
        norm: str = "rows",
        accelerate: bool = True,
        one_op: bool = True,
    ) -> None:
        super().__init__(
            weight, activation=activation, norm=norm, accelerate=accelerate, one_op=one_op
        )
        if adjacency is not None:
            _check_kind(adjacency)
        self.adjacency = adjacency

    def bind(
        self, b: Tensor, adjacency: Adjacency | None = None, *, weight: Tensor | None = None
    ) -> StructuredMap:
        """The map of one call.

        Args:
            b: Bᵀ, [N, m] float64, float32, float16 or bfloat16. Differentiable.
            adjacency: A in the place of the cell's own. Its values are differentiable.
            weight: W in the place of the cell's own, [m, m], dtype and device of b. Differentiable.

        Raises:
            TypeError: a tensor has the wrong dtype or device, or `adjacency` is no `Adjacency`.
            ValueError: a shape is wrong, there is no weight or adjacency, or a symmetric adjacency
                has values that require a gradient.
        """
        weight = self._weight(weight)
        check_tensors(b, weight)
        adjacency = self.adjacency if adjacency is None else adjacency
        if adjacency is None:
            raise ValueError(
                "GraphCell was made without an adjacency, so each call must give one; got none. "
                "Pass layer(z0, b, adjacency)."
            )
        _check_kind(adjacency)
        if adjacency.nodes != len(b):
            raise ValueError(
                f"b must have one row per node of the adjacency, {adjacency.nodes}; got "
                f"{list(b.shape)}. States are node-major: transpose a B of [features, nodes]."
            )
        check_like("adjacency", adjacency.values, b)
        adjacency.check_differentiable()
        return self._map(b, weight, values=adjacency.row_values(), pattern=adjacency.pattern)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphCell:
        """Called for a module that is moved or converted."""
        super()._apply(fn, recurse)
        if self.adjacency is not None:
            values = fn(self.adjacency.values)
            self.adjacency = self.adjacency.to(values.device, values.dtype)
        return self


def _check_kind(adjacency: object) -> None:
    if not isinstance(adjacency, Adjacency):
        raise TypeError(
            f"adjacency must be an Adjacency; got {type(adjacency).__name__}. Build one with "
            "Adjacency.from_coo, Adjacency.from_csr or Adjacency.from_graphs."
        )
