"""The deep equilibrium layer: a cell, a solver and a gradient put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deq_kernels.gradients import Gradient, Implicit
from deq_kernels.ops import Status
from deq_kernels.solvers import (
    Broyden,
    Solution,
    Solver,
    State,
    Structure,
    evaluate,
)


class DEQ(nn.Module):
    """z* = cell(z*, x), differentiable in the cell's parameters and in x.

        layer = DEQ(cell, solver=Broyden(max_steps=18, rtol=1e-3), gradient=Shine(fallback=1.3))
        z = layer(z0, x)

    Args:
        cell: f. A callable, usually a module, called as cell(z, *args, **kwargs); z has the
            structure of z0 and so has what it returns. It must be the same function for all
            calls of one solve: resample dropout masks before, not inside.
        solver: solves z = cell(z, x). Default: Broyden().
        gradient: attaches the gradient to the solution. Default: Implicit().
        eval_solver: used in evaluation mode instead of `solver`. Gradients flow in both modes.
        warm_start: start from the last solution where its shapes, dtype and device fit; samples
            that diverged there start from z0.

    Raises:
        ValueError: the gradient needs an inverse Jacobian that a solver does not build.
    """

    def __init__(
        self,
        cell: Callable[..., State],
        *,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.solver = Broyden() if solver is None else solver
        self.gradient = Implicit() if gradient is None else gradient
        self.eval_solver = self.solver if eval_solver is None else eval_solver
        self.warm_start = warm_start
        self.last_solution: Solution | None = None
        """The last solve, for logging; without its inverse, so that no history is kept alive."""
        for role, chosen in (("solver", self.solver), ("eval_solver", self.eval_solver)):
            if self.gradient.needs_inverse and not chosen.builds_inverse:
                raise ValueError(
                    f"{type(self.gradient).__name__} needs a solver that builds an inverse "
                    f"Jacobian; got {role}={type(chosen).__name__}. Use Broyden, or another "
                    "gradient."
                )

    def forward(self, z0: State, *args: Any, **kwargs: Any) -> State:
        """Solve from z0 and attach the gradient.

        Args:
            z0: initial state, a tensor [B, ...] or a tuple of tensors. No gradient flows to it.
            *args: passed to the cell after z, usually the injected input x.
            **kwargs: passed to the cell.

        Returns:
            The solution, in the structure of z0; with `Unrolled` and autograd, the last unrolled
            state instead, which differs from it while the solve has not converged.
        """
        structure = Structure.of(z0, "z0")

        def f(z: State) -> State:
            return self.cell(z, *args, **kwargs)

        def flat_f(z: Tensor) -> Tensor:
            allow_cast = torch.is_autocast_enabled(z.device.type)
            f_z = evaluate(f, structure.unflatten(z), z)
            return structure.flatten(f_z, allow_cast=allow_cast)

        solver = self.solver if self.training else self.eval_solver
        keep_inverse = self.gradient.needs_inverse and torch.is_grad_enabled()
        solution = solver(f, self._start(z0, structure), keep_inverse=keep_inverse)

        self.last_solution = replace(solution, inverse_jacobian=None)
        z_star = structure.flatten(solution.z)
        if torch.is_grad_enabled():
            return structure.unflatten(
                self.gradient.attach(flat_f, z_star, solution.inverse_jacobian)
            )
        return structure.unflatten(z_star.clone())

    def _start(self, z0: State, structure: Structure) -> State:
        """z0, or with warm start the last solution where it fits."""
        last = self.last_solution
        if not self.warm_start or last is None or Structure.of(last.z, "z") != structure:
            return z0
        usable = (last.status != Status.DIVERGED)[:, None]
        start = torch.where(usable, structure.flatten(last.z), structure.flatten(z0))
        return structure.unflatten(start)

    def extra_repr(self) -> str:
        """Solver and gradient, for print(module)."""
        return f"solver={self.solver}, gradient={self.gradient}"
