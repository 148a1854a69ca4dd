"""The adjoint equation w = Jᵀw + ℓ with dense Jacobians, and what solves it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import deq_kernels as dk


@dataclass
class AdjointProblem:
    """Jacobians [batch, dim, dim], cotangents [batch, dim], and an estimate H of (J − I)⁻¹.

    Attributes:
        calls: how many products with Jᵀ were taken.
    """

    jacobians: Tensor
    cotangent: Tensor
    inverse: dk.InverseJacobian
    calls: int = field(default=0)

    @classmethod
    def of(
        cls,
        norms: list[float],
        dim: int,
        *,
        steps: int = 6,
        dtype: torch.dtype = torch.float64,
    ) -> AdjointProblem:
        """Affine maps, a sample for each spectral norm, after `steps` steps of Broyden."""
        weights = torch.randn(len(norms), dim, dim, dtype=torch.float64)
        sizes = torch.linalg.matrix_norm(weights, 2) / torch.tensor(norms, dtype=torch.float64)
        weights = (weights / sizes[:, None, None]).to(dtype)
        shift = torch.randn(len(norms), dim, dtype=torch.float64).to(dtype)

        def f(z: Tensor) -> Tensor:
            return _rows(weights, z) + shift

        solver = dk.Broyden(max_steps=steps + 1, rtol=0.0, stall_steps=None)
        inverse = solver(f, torch.zeros_like(shift)).inverse_jacobian
        assert inverse is not None
        cotangent = torch.randn(len(norms), dim, dtype=torch.float64).to(dtype)
        return cls(weights, cotangent, inverse)

    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀw, each sample by itself, so that no neighbour can change its bits."""
        self.calls += 1
        return _rows(self.jacobians.mT, w)

    def solution(self) -> Tensor:
        """w by a dense solve in float64."""
        matrix = self.matrix().mT
        return torch.linalg.solve(matrix, self.cotangent.double()[:, :, None])[:, :, 0]

    def matrix(self) -> Tensor:
        """I − J in float64."""
        eye = torch.eye(self.cotangent.shape[1], dtype=torch.float64)
        return eye - self.jacobians.double()

    def residual(self, w: Tensor) -> Tensor:
        """‖ℓ + Jᵀw − w‖ / ‖ℓ‖ of each sample in float64."""
        left = self.cotangent.double() - _rows(self.matrix().mT, w.double())
        return left.norm(dim=1) / self.cotangent.double().norm(dim=1)

    def transposed_inverse(self) -> Tensor:
        """Hᵀ as dense matrices."""
        batch, dim = self.cotangent.shape
        eye = torch.eye(dim, dtype=self.cotangent.dtype).expand(batch, dim, dim).contiguous()
        return self.inverse.rmatvec(eye).mT


def _rows(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.stack([m @ v for m, v in zip(matrices, vectors, strict=True)])
