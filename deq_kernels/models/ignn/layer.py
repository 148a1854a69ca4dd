"""One implicit graph layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels import DEQ, FixedPoint, Gradient, Implicit, Solution, Solver
from deq_kernels.cells import Adjacency, GraphCell, propagate
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
        self.cell = GraphCell(
            activation=config.activation, norm=config.norm, one_op=config.cell != "generic"
        )
        self.deq = DEQ(
            self.cell,
            solver=PICARD if solver is None else solver,
            gradient=Implicit(solver=PICARD) if gradient is None else gradient,
            eval_solver=eval_solver,
            warm_start=warm_start,
        )
        solvers = (self.deq.solver, self.deq.eval_solver)
        if config.cell == "structured" and not all(map(self.deq.solves_in_one_op, solvers)):
            raise ValueError(
                'cell="structured" has the solver FixedPoint and the gradients Implicit, by '
                f"FixedPoint too, Neumann, Unrolled and JacobianFree; got {self.deq.solver!r}, "
                f"{self.deq.eval_solver!r} in evaluation, and {self.deq.gradient!r}. Take "
                'cell="generic" for others.'
            )

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
        z = torch.zeros_like(b)
        if pretrain_steps is not None:
            f = self.cell.bind(b, adjacency, weight=self.weight)
            for _ in range(pretrain_steps):
                z = f(z)
            return z
        state = self.deq(z, b, adjacency, weight=self.weight)
        assert isinstance(state, Tensor)
        return state

    @property
    def last_solution(self) -> Solution | None:
        """How the last equilibrium was found, per graph; None before the first."""
        return self.deq.last_solution

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

    def _product(self, u: Tensor | None, weight: Tensor) -> Tensor:
        """U Ωᵀ in the dtype of W, which autocast may have left."""
        return (weight.t() if u is None else F.linear(u, weight)).to(self.weight.dtype)
