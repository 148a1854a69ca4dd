"""When z = φ(W z A + b) has exactly one solution, and how to keep it so.

|M| is M with its entries' magnitudes, ρ the spectral radius. For a φ with slopes of at most 1 the
equation is well-posed, and the fixed-point iteration finds its solution, if ρ(|W|) ρ(|A|) < 1
(Gu et al. 2020, "Implicit Graph Neural Networks", theorem 4.1). As ρ(|W|) ≤ ‖W‖_∞, it is enough
that ‖W‖_∞ ≤ κ / ρ(|A|) for a κ < 1, a set that W can be projected onto.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells import Adjacency
from deq_kernels.options import check_count, check_number

CHECK_EVERY = 8
"""Products between two looks at the bounds, each of which takes one product more."""

NEGLIGIBLE = 1e-9
"""Entries below this share of the largest are taken for zero where a lower bound is read off."""

SMALLEST = 1e-200
"""Entries of x stay above 0, which the upper bound needs, where their share dies out."""


def project_infinity_norm(weight: Tensor, bound: float) -> Tensor:
    """The W' with ‖W'‖_∞ ≤ bound that is nearest to W in the Frobenius norm.

    ‖W‖_∞ is the largest ℓ1 norm of a row, so each row is projected onto the ℓ1 ball by itself:
    w' = sign(w) max(|w| − θ, 0), where θ = max_k (Σ_{j ≤ k} u_j − bound) / k for |w| sorted into
    u_1 ≥ u_2 ≥ …, and θ = 0 for rows that are inside (Duchi et al. 2008, "Efficient projections
    onto the ℓ1-ball for learning in high dimensions", figure 1). Exact, by sorting, for all rows at
    once and on the device of the weight; in float64, rounded once, so that a row may exceed the
    bound by rounding. Rows inside come out as they are, bit for bit.

    Differentiable, almost everywhere. To keep a parameter in the ball:

        with torch.no_grad():
            weight.copy_(project_infinity_norm(weight, 0.9 / radius))

    Args:
        weight: W, [rows, columns], any floating-point dtype.
        bound: at least 0.

    Raises:
        TypeError: the weight is no tensor of floating-point numbers.
        ValueError: it has another shape, or the bound is out of its range.
    """
    _check_matrix("weight", weight)
    check_number("bound", bound, lambda x: 0 <= x < math.inf, "finite and at least 0")
    if not weight.shape[1]:
        return weight.clone()
    size = weight.double().abs()
    ordered = size.sort(dim=1, descending=True).values
    counts = torch.arange(1, weight.shape[1] + 1, dtype=torch.float64, device=weight.device)
    # The mean excess over the k largest rises up to the k that stay above 0, and falls after it.
    threshold = ((ordered.cumsum(1) - bound) / counts).amax(1, keepdim=True)
    projected = (weight.double().sign() * (size - threshold).clamp(min=0.0)).to(weight.dtype)
    inside = size.sum(1, keepdim=True) <= bound
    return torch.where(inside, weight, projected)


@dataclass(frozen=True, slots=True)
class PerronRadius:
    """Bounds on the spectral radius of |M|; everything per graph, G = 1 for one matrix.

    Attributes:
        lower: ρ(|M|) is at least this, [G] float64.
        upper: ρ(|M|) is at most this, [G] float64.
        converged: whether upper − lower ≤ rtol · upper, [G] bool.
        steps: how often |M| was multiplied with.
    """

    lower: Tensor
    upper: Tensor
    converged: Tensor
    steps: int


def perron_radius(
    matrix: Tensor | Adjacency, *, max_steps: int = 1000, rtol: float = 1e-6
) -> PerronRadius:
    """ρ(|M|) between two bounds, by the power method; for each graph of an adjacency by itself.

    x ← (|M| + σ I) x from ones, scaled, with σ half the largest entry of |M| 1, so that a periodic
    |M| settles too. Both bounds hold after any number of steps, up to rounding in float64:

    - ρ ≤ max_i (|M| x)_i / x_i for every x > 0, and ρ ≥ min_i (|M| x)_i / x_i over the i with
      x_i > 0 for every x ≥ 0 (Collatz–Wielandt; Horn and Johnson, "Matrix Analysis", section 8.3).
      Entries of x that are negligible are taken for zero in the second, so that parts of a graph
      with a smaller radius do not hold it down;
    - ρ ≤ max_i (|M|^k 1)_i ^ (1/k), which is 0 as soon as a graph without cycles runs out of paths.

    For an irreducible M, and a graph that is connected in both directions, they close in on ρ like
    a geometric series. Where M falls into parts that feed each other and have the same radius, as
    directed graphs may, they do so like 1/k only, and `converged` may be False after `max_steps`:
    `upper` is what to go by.

    Entries of an adjacency that share a place count with the sum of their magnitudes. Nothing is
    recorded for autograd. The host waits for the device every eight products.

    Args:
        matrix: M, a dense tensor [n, n], or an `Adjacency`.
        max_steps: largest number of products.
        rtol: when to stop; at least 0 and below 1.

    Raises:
        TypeError: the matrix is neither.
        ValueError: it is not square or not finite, or an option is out of its range.
    """
    check_count("max_steps", max_steps)
    check_number("rtol", rtol, lambda x: 0 <= x < 1, "at least 0 and below 1")
    with torch.no_grad():
        magnitudes = _Magnitudes.of(matrix)
        return _bounds(magnitudes, max_steps, rtol)


def perron_frobenius_bound(
    weight: Tensor, adjacency: Adjacency | None = None, *, max_steps: int = 1000, rtol: float = 1e-6
) -> Tensor:
    """An upper bound on ρ(|W|) ρ(|A|) for each graph, [G] float64; on ρ(|W|), [1], without an A.

    Below 1 the cell is well-posed for a φ with slopes of at most 1: identity, relu, tanh, sigmoid,
    elu, softplus; those of gelu reach 1.13 (Gu et al. 2020, theorem 4.1). The bound exceeds the
    product by about 2 `rtol` where `perron_radius` converges.

    Args:
        weight: W, [n, n].
        adjacency: A.
        max_steps: see `perron_radius`.
        rtol: see `perron_radius`.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: W is not square, a value is not finite, or an option is out of its range.
    """
    _check_matrix("weight", weight)
    bound = perron_radius(weight, max_steps=max_steps, rtol=rtol).upper
    if adjacency is None:
        return bound
    if not isinstance(adjacency, Adjacency):
        raise TypeError(
            f"adjacency must be None or an Adjacency; got {type(adjacency).__name__}. Build one "
            "with Adjacency.from_coo or Adjacency.from_csr."
        )
    radius = perron_radius(adjacency, max_steps=max_steps, rtol=rtol).upper
    return bound.to(radius.device) * radius


@dataclass(frozen=True, slots=True)
class _Magnitudes:
    """|M| as what its power method needs.

    Attributes:
        multiply: x ↦ |M| x, [N, columns] float64.
        graph_of_row: [N] int64.
        graphs: G.
    """

    multiply: Callable[[Tensor], Tensor]
    graph_of_row: Tensor
    graphs: int

    @classmethod
    def of(cls, matrix: Tensor | Adjacency) -> _Magnitudes:
        if isinstance(matrix, Adjacency):
            values = matrix.row_values().detach().double().abs()
            _check_finite(values)
            rows = matrix.pattern.rows

            def multiply(x: Tensor) -> Tensor:
                entries = values[:, None] * x.index_select(0, rows.col)
                return torch.zeros_like(x).index_add_(0, rows.row, entries)

            # Aᵀ has the radius of A.
            graphs = matrix.pattern.graphs
            return cls(multiply, graphs.of_row, len(graphs))
        _check_matrix("matrix", matrix)
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, [n, n]; got {list(matrix.shape)}.")
        magnitudes = matrix.detach().double().abs()
        _check_finite(magnitudes)
        one = torch.zeros(len(matrix), dtype=torch.int64, device=matrix.device)
        return cls(lambda x: magnitudes @ x, one, 1)

    def largest(self, x: Tensor) -> Tensor:
        """Of each graph's rows of x ≥ 0, [N] to [G]; 0 for an empty graph."""
        return x.new_zeros(self.graphs).scatter_reduce_(0, self.graph_of_row, x, "amax")

    def smallest(self, x: Tensor) -> Tensor:
        """Of each graph's rows, [N] to [G]; infinite for an empty graph."""
        infinite = x.new_full((self.graphs,), torch.inf)
        return infinite.scatter_reduce_(0, self.graph_of_row, x, "amin")


def _bounds(m: _Magnitudes, max_steps: int, rtol: float) -> PerronRadius:
    x = torch.ones(len(m.graph_of_row), dtype=torch.float64, device=m.graph_of_row.device)
    power = m.multiply(x[:, None])[:, 0]
    lower, upper = m.smallest(power), m.largest(power)
    shift = 0.5 * upper[m.graph_of_row]
    # |M|^k 1 is `power` times the exponential of `logarithm`.
    logarithm = torch.zeros_like(upper)
    steps = count = 1
    while steps < max_steps:
        size = m.largest(power)
        logarithm = logarithm + size.log()
        divisor = torch.where(size > 0.0, size, 1.0)[m.graph_of_row]
        both = m.multiply(torch.stack((x, power / divisor), 1))
        steps, count = steps + 1, count + 1
        product, power = both[:, 0], both[:, 1]
        growth = ((logarithm + m.largest(power).log()) / count).exp()
        upper = torch.minimum(upper, torch.minimum(m.largest(product / x), growth))
        if steps % CHECK_EVERY == 0 and steps < max_steps:
            kept = torch.where(x > NEGLIGIBLE * m.largest(x)[m.graph_of_row], x, 0.0)
            quotient = m.multiply(kept[:, None])[:, 0] / kept
            steps += 1
            lower = torch.maximum(lower, m.smallest(torch.where(kept > 0.0, quotient, torch.inf)))
            if bool((upper - lower <= rtol * upper).all()):
                break
        moved = product + shift * x
        size = m.largest(moved)
        x = (moved / torch.where(size > 0.0, size, 1.0)[m.graph_of_row]).clamp(min=SMALLEST)
    # An empty graph has an infinite minimum.
    lower = torch.minimum(lower, upper)
    return PerronRadius(lower, upper, upper - lower <= rtol * upper, steps)


def _check_matrix(name: str, matrix: Tensor) -> None:
    if not isinstance(matrix, Tensor) or matrix.layout != torch.strided:
        kind = matrix.layout if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(
            f"{name} must be a dense tensor; got {kind}. Make an Adjacency of a sparse one."
        )
    if not matrix.dtype.is_floating_point:
        raise TypeError(f"{name} must hold floating-point numbers; got {matrix.dtype}.")
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be [rows, columns]; got {list(matrix.shape)}.")


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError("matrix must be finite; got infinite or NaN entries.")
