"""The layer's own forward pass, up to where a gradient is attached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deq_kernels.gradients import Gradient, LayerCall
from deq_kernels.inverse import InverseJacobian
from deq_kernels.layer import DEQ
from deq_kernels.solvers import Solution, Solver, State


@dataclass(frozen=True)
class ForwardPass:
    """What a gradient is given, and the solve it comes from.

    Attributes:
        f: the map of [B, d] to [B, d].
        z_star: the solution [B, d].
        inverse: the solver's estimate of (J − I)⁻¹, where it builds one.
        solution: the outcome, without that estimate.
        solver: which one it was.
    """

    f: Callable[[Tensor], Tensor]
    z_star: Tensor
    inverse: InverseJacobian | None
    solution: Solution
    solver: Solver


def forward_pass(
    layer: DEQ, z0: State, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ForwardPass:
    """Run the layer from z0, without warm start. Call with autograd on.

    The layer is left with another gradient, another last solution, no warm start and no
    `on_solve`.
    """
    solver = layer.solver if layer.training else layer.eval_solver
    capture = _Capture(needs_inverse=solver.builds_inverse)
    layer.gradient, layer.warm_start, layer.on_solve = capture, False, "ignore"
    # Not layer(...), so that nobody who hooked into the layer is called.
    layer.forward(z0, *args, **kwargs)
    assert capture.given is not None
    assert layer.last_solution is not None
    return ForwardPass(*capture.given, layer.last_solution, solver)


class _Capture(Gradient):
    """Keeps what it is given, and attaches nothing."""

    def __init__(self, *, needs_inverse: bool) -> None:
        self.needs_inverse = needs_inverse  # type: ignore[misc]  # each one says for itself
        self.given: tuple[Callable[[Tensor], Tensor], Tensor, InverseJacobian | None] | None = None

    def attach(
        self,
        f: Callable[[Tensor], Tensor],
        z_star: Tensor,
        inverse: InverseJacobian | None,
        call: LayerCall | None = None,
    ) -> Tensor:
        self.given = (f, z_star.detach(), inverse)
        return z_star
