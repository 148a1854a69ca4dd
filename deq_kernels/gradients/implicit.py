"""The exact gradient by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient, VectorJacobianProduct
from deq_kernels.inverse import InverseJacobian
from deq_kernels.solvers import Broyden, Solution, Solver


@dataclass(frozen=True, kw_only=True)
class Implicit(AdjointGradient):
    """Solves w = Jᵀ w + ℓ with a fixed-point solver, one VJP per step.

    The gradient is exact up to the tolerance of both solves. The equation is linear: each sample is
    solved for ℓ scaled by a power of two to entries of about 1, which is exact and keeps the
    solver's squares in range however small or large the loss.

    Args:
        solver: solves for w, from ℓ. Its rtol is relative to ‖Jᵀw + ℓ‖₂, its atol absolute on the
            scaled equation. It must leave `cuda_graph` out: autograd runs the products with Jᵀ on
            the stream of the forward pass, which is not the one that a solver captures.
        on_solve: called with the adjoint's `Solution` in every backward pass, for logging its
            status and steps; what a sample that did not converge means is the caller's decision.

    Raises:
        ValueError: the solver has `cuda_graph` set.
    """

    solver: Solver = field(default_factory=lambda: Broyden(max_steps=40, rtol=1e-5))
    on_solve: Callable[[Solution], None] | None = None

    def __post_init__(self) -> None:
        if self.solver.cuda_graph:
            raise ValueError(
                "Implicit's solver must have cuda_graph=False: autograd runs the products with Jᵀ "
                "on the stream of the forward pass, which is not the one that a solver captures. "
                "The forward solver may have it."
            )

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w with w = Jᵀ w + ℓ."""
        exponent = _exponent(cotangent)
        scaled = torch.ldexp(cotangent, -exponent)
        solution = self.solver(lambda w: vjp(w) + scaled, scaled, keep_inverse=False)
        if self.on_solve is not None:
            self.on_solve(solution)
        assert isinstance(solution.z, Tensor)
        return torch.ldexp(solution.z, exponent)


def _exponent(cotangent: Tensor) -> Tensor:
    """e with max |cotangent| · 2^−e in [1/2, 1) per sample, [batch, 1]; 0 for zeros and NaN."""
    if cotangent.numel() == 0:
        return torch.zeros((len(cotangent), 1), dtype=torch.int32, device=cotangent.device)
    largest = cotangent.abs().amax(dim=1, keepdim=True).double()
    exponent = torch.frexp(torch.where(largest.isfinite(), largest, 0.0)).exponent
    # 2^e itself must be representable in the dtype.
    limit = -math.frexp(torch.finfo(cotangent.dtype).tiny)[1]
    return exponent.clamp(-limit, limit)
