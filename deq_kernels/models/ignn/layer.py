"""One implicit graph layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels import DEQ, FixedPoint, Gradient, Implicit, Solution, Solver
from deq_kernels.cells import Adjacency, propagate, solve_graph
from deq_kernels.models.ignn.cell import Slots, graph_cell
from deq_kernels.models.ignn.config import IGNNConfig
from deq_kernels.nn import project_infinity_norm


class ImplicitGraphLayer(nn.Module):
    """X of X = φ(W X A + B) with B = Ω U A (Gu et al. 2020, equations 2 and 4.1).

    Tensors are node-major: U is [N, p], X is [N, m]. Each graph of a batch is a sample of its own.
    W is drawn from U(±1/√m), as all other parameters are, and kept in the ball ‖W‖_∞ ≤ κ / ρ by
    `project_`, in which there is one X, and Picard's iteration finds it.

    Args:
        config: activation, κ, cell and tolerance.
        features: p.
        width: m.
        solver: see `IGNN`.
        gradient: see `IGNN`.
        eval_solver: see `IGNN`.
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
        self.gradient = gradient
        self.deq: DEQ | None = None
        """The layer of the generic path; None on the structured one."""
        self._options: dict[str, Any] = {}
        self._eval_options: dict[str, Any] = {}
        if config.cell == "structured":
            self._options = _options_of(solver, config)
            self._eval_options = _options_of(eval_solver or solver, config)
        else:
            picard = FixedPoint(max_steps=config.max_steps, rtol=0.0, atol=config.tolerance)
            self.deq = DEQ(
                self._evaluate,
                solver=picard if solver is None else solver,
                gradient=Implicit(solver=picard) if gradient is None else gradient,
                eval_solver=eval_solver,
            )
        self.last_solution: Solution | None = None
        """How the last equilibrium was found, per graph; None before the first."""

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
                gradient=self.gradient,
                on_solve=self._keep,
                **(self._options if self.training else self._eval_options),
            )
        slots = Slots.of(adjacency)
        z0 = b.new_zeros(slots.graphs, slots.longest, b.shape[1])
        state = self.deq(z0, b, adjacency, slots)
        assert isinstance(state, Tensor)
        self.last_solution = self.deq.last_solution
        return slots.gather(state)

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

    def _product(self, u: Tensor | None, weight: Tensor) -> Tensor:
        """U Ωᵀ in the dtype of W, which autocast may have left."""
        return (weight.t() if u is None else F.linear(u, weight)).to(self.weight.dtype)

    def _keep(self, solution: Solution) -> None:
        self.last_solution = solution


def _options_of(solver: Solver | None, config: IGNNConfig) -> dict[str, Any]:
    """What `solve_graph` is to be told of a solver.

    Raises:
        ValueError: the structured cell does not iterate like that.
    """
    if solver is None:
        return {
            "max_steps": config.max_steps,
            "rtol": 0.0,
            "atol": config.tolerance,
            "norm": "max",
        }
    if not isinstance(solver, FixedPoint) or solver.synchronized is not False:
        raise ValueError(
            'cell="structured" solves by the fixed-point iteration, in one process; got '
            f'{solver!r}. Take cell="generic" in the config, a FixedPoint, or no solver for '
            "Picard steps to the config's tolerance."
        )
    return {
        "max_steps": solver.max_steps,
        "rtol": solver.rtol,
        "atol": solver.atol,
        "damping": solver.damping,
        "stall_steps": solver.stall_steps,
        "divergence_factor": solver.divergence_factor,
    }
