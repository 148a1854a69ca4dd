"""Who is compared on structured cells, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..provider import OURS, Provider, require_backend
from .problem import MAX_STEPS, TOLERANCE, CellProblem, Direction

if TYPE_CHECKING:
    from torch import Tensor

    from deq_kernels import Solution


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
    """`solve_graph`, and the implicit adjoint that its backward pass takes."""

    def __init__(self, problem: CellProblem, direction: Direction) -> None:
        import torch

        from deq_kernels.cells import Adjacency

        index = torch.stack([problem.source, problem.target])
        self._problem = problem
        self._adjacency = Adjacency.from_coo(
            index,
            problem.values,
            nodes=problem.nodes,
            graph_ptr=problem.graph_ptr,
            symmetric=problem.symmetric,
        )
        prepare = self._solve if direction is Direction.SOLVE else self._adjoint
        self._call = prepare(None)
        self._found: list[Solution] = []
        self._watched = prepare(self._found.append)

    def __call__(self) -> Tensor:
        return self._call()

    @property
    def steps(self) -> int:
        """Of a solve of its own: handing out a solution copies it, which is not what is timed."""
        if not self._found:
            self._watched()
        return int(self._found[0].steps.max())

    def _solve(self, on_solve: Callable[[Solution], None] | None) -> Callable[[], Tensor]:
        from deq_kernels.cells import solve_graph

        return lambda: solve_graph(
            self._problem.bias,
            self._problem.weight,
            self._adjacency,
            activation="relu",
            max_steps=MAX_STEPS,
            rtol=0.0,
            atol=TOLERANCE,
            norm="max",
            on_solve="ignore" if on_solve is None else on_solve,
        )

    def _adjoint(self, on_solve: Callable[[Solution], None] | None) -> Callable[[], Tensor]:
        from deq_kernels import Implicit
        from deq_kernels.cells.estimators import adjoint_of
        from deq_kernels.cells.iteration import LinearMap, Stopping

        stopping = Stopping(
            max_steps=MAX_STEPS,
            rtol=0.0,
            atol=TOLERANCE,
            stall_steps=None,
            divergence_factor=1e6,
            norm="max",
            damping=1.0,
            accelerate=True,
        )
        adjoint = adjoint_of(Implicit(on_solve=on_solve), stopping)
        pattern = self._adjacency.pattern
        problem = self._problem

        def call() -> Tensor:
            values = pattern.transpose(self._adjacency.row_values())
            transposed = LinearMap(problem.weight.T, pattern.transposed, values, problem.slope)
            return adjoint(problem.cotangent, transposed)

        return call


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
