"""One implicit graph layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels import (
    DEQ,
    FixedPoint,
    Gradient,
    Implicit,
    JacobianFree,
    Neumann,
    Solution,
    Solver,
    Unrolled,
)
from deq_kernels.cells import Adjacency, propagate, solve_graph
from deq_kernels.models.ignn.cell import Slots, graph_cell
from deq_kernels.models.ignn.config import IGNNConfig
from deq_kernels.nn import project_infinity_norm

PICARD = FixedPoint(max_steps=300, rtol=1e-4)
"""As published, forward and backward, but for the tolerance, which is relative: published is an
absolute one, atol=3e-6, which small states do not meet by being accurate."""


class ImplicitGraphLayer(nn.Module):
    """X of X = φ(W X A + B) with B = Ω U A (Gu et al. 2020, "Implicit Graph Neural Networks").

    Tensors are node-major: U is [N, p], X is [N, m]. Each graph of a batch is a sample of its own.
    W is drawn from U(±1/√m), as all other parameters are, and kept in the ball ‖W‖_∞ ≤ κ / ρ by
    `project_`, in which there is one X, and Picard's iteration finds it.

    Args:
        config: activation, κ, injection and cell.
        features: p.
        width: m.
        solver: see `IGNN`.
        gradient: see `IGNN`.
        eval_solver: see `IGNN`.
        warm_start: see `IGNN`.

    Raises:
        ValueError: cell="structured" does not have the solvers or the gradient.
    """

    def __init__(
        self,
        config: IGNNConfig,
        *,
        features: int,
        width: int,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(width, width))
        """W"""
        self.input_weight = nn.Parameter(torch.empty(width, features))
        """Ω"""
        self.local_weight: nn.Parameter | None = None
        """Ω₂"""
        self.bias: nn.Parameter | None = None
        """b"""
        if config.local_injection != "none":
            trained = config.local_injection == "trained"
            self.local_weight = nn.Parameter(torch.empty(width, features), requires_grad=trained)
            self.bias = nn.Parameter(torch.empty(width), requires_grad=trained)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1.0 / math.sqrt(width), 1.0 / math.sqrt(width))
        self.solver = PICARD if solver is None else solver
        self.eval_solver = self.solver if eval_solver is None else eval_solver
        self.gradient = Implicit(solver=PICARD) if gradient is None else gradient
        self.warm_start = warm_start
        self.deq: DEQ | None = None
        """The layer of the generic path; None on the structured one."""
        if not self._is_structured():
            self.deq = DEQ(
                self._evaluate,
                solver=self.solver,
                gradient=self.gradient,
                eval_solver=self.eval_solver,
                warm_start=warm_start,
            )
        self.last_solution: Solution | None = None
        """How the last equilibrium was found, per graph; None before the first."""
        self._solved_ptr: Tensor | None = None

    def forward(
        self, u: Tensor | None, adjacency: Adjacency, *, pretrain_steps: int | None = None
    ) -> Tensor:
        """X, node-major.

        Args:
            u: U, [N, p]; None for unit vectors, with p = N.
            adjacency: A.
            pretrain_steps: apply the map so often from zero, instead of solving.

        Returns:
            [N, m].
        """
        b = self.injection(u, adjacency)
        if pretrain_steps is not None:
            z = torch.zeros_like(b)
            for _ in range(pretrain_steps):
                z = graph_cell(z, b, self.weight, adjacency, self.config.activation)
            return z
        if self.deq is None:
            return solve_graph(
                b,
                self.weight,
                adjacency,
                activation=self.config.activation,
                z0=self._start(b, adjacency),
                gradient=self.gradient,
                on_solve=self._keep,
                norm=self.config.norm,
                **_options_of(self.solver if self.training else self.eval_solver),
            )
        slots = Slots.of(adjacency)
        z0 = b.new_zeros(slots.graphs, slots.longest, b.shape[1])
        state = self.deq(z0, b, adjacency, slots)
        assert isinstance(state, Tensor)
        self.last_solution = self.deq.last_solution
        return self._one_step_on(slots.gather(state), b, adjacency)

    def injection(self, u: Tensor | None, adjacency: Adjacency) -> Tensor:
        """Bᵀ = Aᵀ U Ωᵀ, and U Ω₂ᵀ + 1 bᵀ where that is trained, [N, m] in the dtype of W."""
        b = propagate(self._product(u, self.input_weight), adjacency)
        if self.config.local_injection != "trained":
            return b
        assert self.local_weight is not None
        assert self.bias is not None
        return b + self._product(u, self.local_weight) + self.bias

    def project_(self, radius: float) -> None:
        """W ← the nearest W with ‖W‖_∞ ≤ κ / radius, for graphs with ρ(|A|) ≤ radius."""
        with torch.no_grad():
            self.weight.copy_(project_infinity_norm(self.weight, self.config.kappa / radius))

    def _evaluate(self, z: Tensor, b: Tensor, adjacency: Adjacency, slots: Slots) -> Tensor:
        """f on samples: z [G, longest, m], b [N, m]."""
        nodes = slots.gather(z)
        return slots.spread(graph_cell(nodes, b, self.weight, adjacency, self.config.activation))

    def _one_step_on(self, z: Tensor, b: Tensor, adjacency: Adjacency) -> Tensor:
        """f(z) with the gradient of z, as the structured cell returns it: the slopes that a
        gradient takes at z belong to f(z). The last state of `Unrolled` is of that kind."""
        if isinstance(self.gradient, Unrolled):
            return z

        def step(z: Tensor) -> Tensor:
            return graph_cell(z, b, self.weight, adjacency, self.config.activation)

        y: Tensor = _StepFrom.apply(z, step)
        return y

    def _product(self, u: Tensor | None, weight: Tensor) -> Tensor:
        """U Ωᵀ in the dtype of W, which autocast may have left."""
        return (weight.t() if u is None else F.linear(u, weight)).to(self.weight.dtype)

    def _is_structured(self) -> bool:
        possible = all(
            structured_has(solver, self.gradient) for solver in (self.solver, self.eval_solver)
        )
        if self.config.cell == "structured" and not possible:
            raise ValueError(
                'cell="structured" has the solver FixedPoint and the gradients Implicit, by '
                f"FixedPoint too, Neumann, Unrolled and JacobianFree; got {self.solver!r}, "
                f'{self.eval_solver!r} in evaluation, and {self.gradient!r}. Take cell="generic" '
                "for others."
            )
        return possible and self.config.cell != "generic"

    def _start(self, b: Tensor, adjacency: Adjacency) -> Tensor | None:
        """Where a structured solve starts: None for zeros, or where the last one ended."""
        same = adjacency.graph_ptr is self._solved_ptr
        self._solved_ptr = adjacency.graph_ptr
        last = self.last_solution
        if not self.warm_start or last is None or not same:
            return None
        z = last.z
        assert isinstance(z, Tensor)
        # The best iterate of a graph that diverged is as good a start as any, and finite.
        return z if (z.shape, z.dtype, z.device) == (b.shape, b.dtype, b.device) else None

    def _keep(self, solution: Solution) -> None:
        self.last_solution = solution


class _StepFrom(torch.autograd.Function):
    """f(z) in the place of z, which gets its gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return f(z)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return cotangent, None


def structured_has(solver: Solver, gradient: Gradient) -> bool:
    """Whether the structured cell has a solver and a gradient."""
    return _iterates(solver) and (
        isinstance(gradient, Neumann | Unrolled)
        or (isinstance(gradient, JacobianFree) and not gradient.refine)
        or (
            isinstance(gradient, Implicit)
            and (gradient.solver == Implicit().solver or _iterates(gradient.solver))
        )
    )


def _iterates(solver: object) -> bool:
    """Whether it is the fixed-point iteration, in one process and without options of its loop."""
    return (
        isinstance(solver, FixedPoint)
        and solver.synchronized is False
        and not solver.compact
        and not solver.cuda_graph
    )


def _options_of(solver: Solver) -> dict[str, Any]:
    """What `solve_graph` is to be told of a solver."""
    assert isinstance(solver, FixedPoint)
    return {
        "max_steps": solver.max_steps,
        "rtol": solver.rtol,
        "atol": solver.atol,
        "damping": solver.damping,
        "stall_steps": solver.stall_steps,
        "divergence_factor": solver.divergence_factor,
    }
