"""Who is compared on structured cells, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..provider import OURS, Provider, require_backend
from .problem import MAX_STEPS, TOLERANCE, CellProblem, Direction

if TYPE_CHECKING:
    from torch import Tensor

    from deq_kernels import Implicit, Solution


class Solve(Protocol):
    """One equation, ready to be solved again and again."""

    @property
    def steps(self) -> int:
        """Steps of the last call, of the graph that took most."""
        ...

    def __call__(self) -> Tensor:
        """The answer from a start at zero, [N, n]; it may lie in a buffer of the next call."""
        ...


Bind = Callable[[CellProblem, Direction], Solve]
"""Prepares what does not depend on the state, such as the layout of A. It is not timed."""

PLAIN = "plain-"
"""What the names of the formulations in plain PyTorch begin with; the fastest of them counts."""


class _Ours:
    """A layer on a `GraphCell`, and the implicit adjoint that its backward pass takes."""

    def __init__(self, problem: CellProblem, direction: Direction) -> None:
        import torch

        from deq_kernels import DEQ, FixedPoint, Implicit
        from deq_kernels.cells import Adjacency, GraphCell

        index = torch.stack([problem.source, problem.target])
        self._problem = problem
        self._adjacency = Adjacency.from_coo(
            index,
            problem.values,
            nodes=problem.nodes,
            graph_ptr=problem.graph_ptr,
            symmetric=problem.symmetric,
        )
        self._solver = FixedPoint(
            max_steps=MAX_STEPS,
            rtol=0.0,
            atol=TOLERANCE,
            stall_steps=30 if direction is Direction.SOLVE else None,
        )
        cell = GraphCell(problem.weight, self._adjacency, activation="relu", norm="max")
        self._layer = DEQ(cell, solver=self._solver, on_solve="ignore")
        self._start = torch.zeros_like(problem.bias)
        self._found: list[Solution] = []
        self._gradient = Implicit()
        self._watched = Implicit(on_solve=self._found.append)
        self._direction = direction

    def __call__(self) -> Tensor:
        return (
            self._solve() if self._direction is Direction.SOLVE else self._adjoint(self._gradient)
        )

    @property
    def steps(self) -> int:
        """Of a solve of its own: handing out a solution copies it, which is not what is timed."""
        if self._direction is Direction.SOLVE:
            self._solve()
            assert self._layer.last_solution is not None
            return int(self._layer.last_solution.steps.max())
        if not self._found:
            self._adjoint(self._watched)
        return int(self._found[0].steps.max())

    def _solve(self) -> Tensor:
        z: Tensor = self._layer(self._start, self._problem.bias)
        return z

    def _adjoint(self, gradient: Implicit) -> Tensor:
        from deq_kernels.cells.iteration import LinearMap
        from deq_kernels.gradients.structured import KnownJacobian
        from deq_kernels.gradients.watch import Watch
        from deq_kernels.ops.cells import NormKind

        pattern, problem = self._adjacency.pattern, self._problem
        values = pattern.transpose(self._adjacency.row_values())
        transposed = LinearMap(problem.weight.T, pattern.transposed, values, problem.slope)
        jacobian = KnownJacobian(
            transposed, self._solver, NormKind.MAX, accelerate=True, watch=Watch("ignore", set())
        )
        return gradient.structured_adjoint(problem.cotangent, jacobian)


def _load_native(device: str) -> Bind:
    require_backend("native", device)
    return _Ours


def _load_plain(name: str) -> Callable[[str], Bind]:
    def load(device: str) -> Bind:
        from . import plain_pytorch

        bind: Bind = getattr(plain_pytorch, name)
        return bind

    return load


def _load_ignn_style(device: str) -> Bind:
    from .ignn_style import IgnnLoop

    return IgnnLoop


PROVIDERS: tuple[Provider[Bind], ...] = (
    Provider(OURS, "deq_kernels, native kernels", _load_native, backend="native"),
    Provider(
        f"{PLAIN}csr", "plain PyTorch, node-major: sparse product (CSR), addmm", _load_plain("csr")
    ),
    Provider(
        f"{PLAIN}csr-last",
        "plain PyTorch, node-major: dense product, sparse addmm (CSR)",
        _load_plain("csr_last"),
    ),
    Provider(f"{PLAIN}bag", "plain PyTorch, node-major: embedding_bag, addmm", _load_plain("bag")),
    Provider(
        f"{PLAIN}padded",
        "plain PyTorch, graphs padded to dense batches: mm, baddbmm",
        _load_plain("padded"),
    ),
    Provider(
        "ignn-style", "feature-major, sparse COO, as the code of IGNN iterates", _load_ignn_style
    ),
)
