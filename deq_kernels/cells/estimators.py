"""w in w = Jᵀ w + ℓ for a structured cell, by the gradients that the layer takes too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells.iteration import LinearMap, Stopping, iterate, steps_alone
from deq_kernels.cells.linear import LinearSystem
from deq_kernels.cells.watched import handed_out
from deq_kernels.gradients import Gradient, Implicit, JacobianFree, Neumann, Unrolled
from deq_kernels.gradients.second_derivatives import refuse_derivative
from deq_kernels.gradients.watch import Watch
from deq_kernels.options import check_kind
from deq_kernels.solvers import FixedPoint, Solution

Adjoint = Callable[[Tensor, LinearMap], Tensor]
"""w from ℓ [N, n] and the map w ↦ Jᵀ w. Differentiable, or refuses to be."""


Estimator = Adjoint | Unrolled
"""How the gradient passes a solve: by a w, or by steps that autograd records (`cells.unrolled`)."""


def estimator_of(
    gradient: Gradient | None, stopping: Stopping, watch: Watch | None = None
) -> Estimator:
    """What a structured cell makes of a gradient. Arguments and errors: see `adjoint_of`."""
    return gradient if isinstance(gradient, Unrolled) else adjoint_of(gradient, stopping, watch)


def adjoint_of(
    gradient: Gradient | None, stopping: Stopping, watch: Watch | None = None
) -> Adjoint:
    """What a gradient makes of ℓ.

    Args:
        gradient: None for the implicit one.
        stopping: that of the solve, which an implicit gradient takes over if it sets no other.
        watch: who is told of adjoint solves, besides the gradient's own `on_solve`.

    Raises:
        TypeError: it is no gradient.
        ValueError: a structured cell does not have it, or not with these options.
    """
    if gradient is None:
        gradient = Implicit()
    check_kind("gradient", gradient, Gradient, "dk.Implicit(), or None for it")
    if isinstance(gradient, Implicit):
        return ImplicitAdjoint(_own_stopping(gradient, stopping), gradient.on_solve, watch)
    if isinstance(gradient, Neumann):
        return NeumannAdjoint(gradient.steps, gradient.damping)
    if isinstance(gradient, JacobianFree) and not gradient.refine:
        return _jacobian_free
    raise ValueError(
        "A structured cell has the gradients Implicit, Neumann, Unrolled and "
        f"JacobianFree(refine=0); got {gradient!r}. Take one of these, or deq_kernels.DEQ on the "
        "cell written in PyTorch."
    )


@dataclass(frozen=True, slots=True)
class ImplicitAdjoint:
    """The exact w, up to the tolerance, with derivatives of every order.

    Attributes:
        stopping: of the equation scaled to entries of about 1.
        on_solve: told of every solution.
        watch: likewise.
    """

    stopping: Stopping
    on_solve: Callable[[Solution], None] | None
    watch: Watch | None

    def __call__(self, cotangent: Tensor, transposed: LinearMap) -> Tensor:
        """Solve w = Jᵀ w + ℓ."""
        system = LinearSystem(transposed.pattern, self.stopping, self._report)
        return system.solve(cotangent, transposed.scale, transposed.weight, transposed.values)

    def _report(self, solution: Solution) -> None:
        if self.on_solve is not None:
            self.on_solve(handed_out(solution))
        if self.watch is not None:
            self.watch.solved(solution, "adjoint")


@dataclass(frozen=True, slots=True)
class NeumannAdjoint:
    """w after `steps` steps of w ← λ (ℓ + Jᵀ w) + (1 − λ) w from 0 (PG, equation 17)."""

    steps: int
    damping: float

    def __call__(self, cotangent: Tensor, transposed: LinearMap) -> Tensor:
        """Take the steps."""
        with torch.no_grad():
            # λ ℓ is what the first step makes of 0, without a product.
            start = self.damping * cotangent
            if self.steps > 1:
                rest = steps_alone(self.steps - 1, self.damping)
                solution = iterate(transposed, cotangent, start, stopping=rest, fixed_steps=True)
                assert isinstance(solution.z, Tensor)
                start = solution.z
        return _first_derivatives_only(start, "Neumann", cotangent, transposed)


def _jacobian_free(cotangent: Tensor, transposed: LinearMap) -> Tensor:
    return _first_derivatives_only(cotangent, "JacobianFree", cotangent, transposed)


def _own_stopping(gradient: Implicit, stopping: Stopping) -> Stopping:
    """The tolerance of an implicit gradient: its own, or the forward solve's."""
    solver = gradient.solver
    if solver == Implicit().solver:
        return stopping
    if not isinstance(solver, FixedPoint):
        raise ValueError(
            "A structured cell solves its adjoint by the fixed-point iteration; got "
            f"Implicit(solver={solver!r}). Pass Implicit(solver=FixedPoint(...)), Implicit() for "
            "the tolerance of the forward solve, or use deq_kernels.DEQ."
        )
    if solver.synchronized is not False:
        raise ValueError(
            "A structured cell solves in one process; got synchronized="
            f"{solver.synchronized!r}. Leave it out."
        )
    return Stopping(
        max_steps=solver.max_steps,
        rtol=solver.rtol,
        atol=solver.atol,
        stall_steps=solver.stall_steps,
        divergence_factor=solver.divergence_factor,
        norm=stopping.norm,
        damping=solver.damping,
        accelerate=False,
    )


def _first_derivatives_only(
    w: Tensor, name: str, cotangent: Tensor, transposed: LinearMap
) -> Tensor:
    if not torch.is_grad_enabled():
        return w
    refusal = (
        f"{name} gives first derivatives only, but its result was differentiated again. Detach "
        "the first gradient, or use Implicit."
    )
    known = (cotangent, transposed.weight, transposed.scale, transposed.values)
    return refuse_derivative(w, refusal, *(tensor for tensor in known if tensor is not None))
