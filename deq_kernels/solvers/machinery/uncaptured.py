"""Solvers whose steps cannot be captured into a CUDA graph."""

from __future__ import annotations

from deq_kernels.solvers.base import Solver


def refuse_cuda_graph(solver: Solver) -> None:
    """Raise ValueError where `cuda_graph` is set.

    For solvers whose steps keep what they know in tensors made anew each time, or in Python; a
    replayed graph would go on with what the captured step knew.
    """
    if solver.cuda_graph:
        raise ValueError(
            f"{type(solver).__name__} must have cuda_graph=False: its steps depend on more than a "
            "graph can hold. Broyden, Anderson, GMRES and FixedPoint can be captured."
        )
