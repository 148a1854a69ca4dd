"""Products with H = −I + Σ u_i v_iᵀ in the layout of these repositories."""

from __future__ import annotations

import torch
from torch import Tensor


def matvec(part_Us: Tensor, part_VTs: Tensor, x: Tensor) -> Tensor:
    """H x for Us [B, ..., m], VTs [B, m, ...] and x [B, ...]."""
    if part_Us.numel() == 0:
        return -x
    coefficients = torch.einsum("bmd,bd->bm", part_VTs.flatten(2), x.flatten(1))
    return torch.einsum("bdm,bm->bd", part_Us.flatten(1, -2), coefficients).view_as(x) - x


def rmatvec(part_Us: Tensor, part_VTs: Tensor, x: Tensor) -> Tensor:
    """Hᵀ x for Us [B, ..., m], VTs [B, m, ...] and x [B, ...]; SHINE's w is −Hᵀ ℓ."""
    if part_Us.numel() == 0:
        return -x
    coefficients = torch.einsum("bdm,bd->bm", part_Us.flatten(1, -2), x.flatten(1))
    return torch.einsum("bmd,bm->bd", part_VTs.flatten(2), coefficients).view_as(x) - x
