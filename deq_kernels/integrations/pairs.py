"""U and V factors of other Broyden solvers as inverse estimates of this package, and back.

They write H = −I + Σ_i u_i v_iᵀ and store u as `Us` [B, ..., m] and v as `VTs` [B, m, ...], where
the state is [B, ...] (torchdeq: [B, d, m] and [B, m, d]). Their pair of a step s is

    v = H_kᵀ s,   u = (s − H_k y) / ⟨v, y⟩,   so that   H_{k+1} = (I + u sᵀ) H_k,

the factors of a `ProductFormInverse` with s for its direction, if u is parallel to the next step:
so it is for the unit steps that the solvers take without a line search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.inverse import InverseJacobian, LowRankInverse, ProductFormInverse
from deq_kernels.ops.norms import norm, squared_norm
from deq_kernels.options import check_not_negative

PARALLEL = 1e3
"""How far, in units of the dtype's rounding, u and the next step may be from parallel."""


def inverse_from_pairs(
    Us: Tensor, VTs: Tensor, *, tolerance: float | None = None
) -> ProductFormInverse | LowRankInverse:
    """H = −I + Σ_i u_i v_iᵀ from another solver's factors.

    Where the pairs of every sample are those of unit Broyden steps from the first one on, the
    result is a `ProductFormInverse`: the same H, to rounding, from one vector per pair instead of
    two. It is a `LowRankInverse` otherwise: after a line search, once a full buffer was
    overwritten, or where a pair was lost. Zero pairs at the end are room for more and are left out.

    Args:
        Us: u_i, [B, ..., m], float32 or float64.
        VTs: v_i, [B, m, ...].
        tolerance: the largest sine of the angle between a u and the step that should follow it for
            the product form; None for 1,000 times the rounding of the dtype. 0 never takes it.

    Raises:
        ValueError: the shapes do not fit together.
        TypeError: dtypes differ, or are neither float32 nor float64.
    """
    u, v = _rows(Us, VTs)
    if tolerance is None:
        tolerance = PARALLEL * torch.finfo(u.dtype).eps
    check_not_negative("tolerance", tolerance)
    used = (u != 0).any(dim=2) & (v != 0).any(dim=2)
    number = torch.arange(1, u.shape[1] + 1, device=u.device)
    rank = torch.where(used, number, 0).amax(dim=1) if u.shape[1] else number.new_zeros(len(u))
    most = int(rank.max()) if rank.numel() else 0
    u, v = u[:, :most].contiguous(), v[:, :most].contiguous()
    product = _product_form(u, v, rank, tolerance) if most else None
    return LowRankInverse(u, v, rank) if product is None else product


def pairs_from_inverse(
    inverse: InverseJacobian, shape: torch.Size | tuple[int, ...], *, capacity: int | None = None
) -> tuple[Tensor, Tensor]:
    """Us [B, ..., m] and VTs [B, m, ...] with H = −I + Σ_i u_i v_iᵀ, zero beyond a sample's rank.

    The first k pairs of a `ProductFormInverse` are those of H after k steps; finding them takes a
    product with Hᵀ for each.

    Args:
        inverse: a `ProductFormInverse` or `LowRankInverse` with γ = 1.
        shape: of a state, batch included.
        capacity: m; None for the largest rank.

    Raises:
        TypeError: another kind of inverse.
        ValueError: γ is not 1, or the shape or capacity does not fit.
    """
    if not isinstance(inverse, ProductFormInverse | LowRankInverse):
        raise TypeError(
            "pairs_from_inverse takes a ProductFormInverse or a LowRankInverse; got "
            f"{type(inverse).__name__}."
        )
    gamma = torch.as_tensor(inverse.gamma)
    if bool((gamma != 1.0).any()):
        raise ValueError(
            f"U and V factors stand for H + I, so gamma must be 1; got {inverse.gamma}. Solve with "
            "gamma=1."
        )
    rank = inverse.rank
    most = int(rank.max()) if rank.numel() else 0
    capacity = most if capacity is None else capacity
    batch, *sizes = shape
    dim = torch.Size(sizes).numel()
    stored = inverse.directions if isinstance(inverse, ProductFormInverse) else inverse.u
    if (batch, dim) != (len(rank), stored.shape[2]) or capacity < most:
        raise ValueError(
            f"shape must be that of {len(rank)} states of {stored.shape[2]} elements, and capacity "
            f"at least {most}; got {list(shape)} and {capacity}."
        )
    dtype = inverse.dtype or stored.dtype
    u = torch.zeros(batch, capacity, dim, dtype=dtype, device=rank.device)
    v = torch.zeros_like(u)
    valid = (torch.arange(most, device=rank.device) < rank[:, None])[:, :, None]
    if isinstance(inverse, LowRankInverse):
        u[:, :most] = torch.where(valid, inverse.u[:, :most].to(dtype), 0.0)
        v[:, :most] = torch.where(valid, inverse.v[:, :most].to(dtype), 0.0)
    elif most:
        p = inverse.directions[:, : most + 1].to(dtype)
        step, weight = inverse.algebra[:, :most, -2:].to(dtype).unsqueeze(2).unbind(3)
        factors = weight * (p[:, 1:] + (step - 1.0) * p[:, :-1])
        u[:, :most] = torch.where(valid, factors, 0.0)
        for k in range(most):
            count = torch.minimum(inverse.count, torch.full_like(rank, k + 1))
            before = ProductFormInverse(inverse.directions, inverse.algebra, count, 1.0, dtype)
            direction = torch.where(valid[:, k], p[:, k], 0.0)
            v[:, k] = before.rmatvec(direction.contiguous())
    Us = u.mT.reshape(batch, *sizes, capacity)
    return Us, v.reshape(batch, capacity, *sizes)


def _rows(Us: Tensor, VTs: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors as [B, m, d], checked."""
    fits = Us.dim() >= 3 and VTs.dim() == Us.dim()
    if not fits or Us.shape != (VTs.shape[0], *VTs.shape[2:], VTs.shape[1]):
        raise ValueError(
            f"Us must be [B, ..., m] and VTs [B, m, ...]; got {list(Us.shape)} and "
            f"{list(VTs.shape)}."
        )
    if Us.dtype != VTs.dtype or Us.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"Us and VTs must both be float32 or both float64; got {Us.dtype} and {VTs.dtype}."
        )
    batch, history = VTs.shape[:2]
    dim = VTs.shape[2:].numel()
    return Us.reshape(batch, dim, history).mT, VTs.reshape(batch, history, dim)


def _product_form(
    u: Tensor, v: Tensor, rank: Tensor, tolerance: float
) -> ProductFormInverse | None:
    """The product form, or None where a sample has none.

    The step of a pair follows from v_k = H_kᵀ s_k, H_kᵀ = −(I + s_0 u_0ᵀ) ⋯ (I + s_{k−1} u_{k−1}ᵀ),
    by (I + s uᵀ)⁻¹ = I − s uᵀ / (1 + ⟨u, s⟩). A factor's u is its weight times the next direction.
    """
    batch, most, dim = u.shape
    dtype, u, v = u.dtype, u.double(), v.double()
    steps = u.new_zeros(batch, most + 1, dim)
    for k in range(most):
        s = -v[:, k]
        for j in range(k):
            share = (u[:, j] * s).sum(1) / (1.0 + (u[:, j] * steps[:, j]).sum(1))
            s = s - share[:, None] * steps[:, j]
        steps[:, k] = s
    weight = u.new_ones(batch, most)
    last = rank - 1
    for k in range(most):
        following, factor = steps[:, k + 1].clone(), u[:, k]
        ends = (last == k)[:, None]
        steps[:, k + 1] = torch.where(ends, factor, following)
        inside = last > k
        cosine = (factor * following).sum(1)
        weight[:, k] = torch.where(inside, cosine / squared_norm(following), 1.0)
        apart = factor - weight[:, k, None] * following
        bound = tolerance * norm(factor)
        if not bool((~inside | (norm(apart) < bound)).all()):
            return None
    number = torch.arange(most + 1, device=u.device)
    steps = torch.where((number <= rank[:, None])[:, :, None], steps, 0.0)
    directions = steps.to(dtype)
    stored = directions.double()
    algebra = u.new_zeros(batch, most + 1, most + 3)
    algebra[:, :, : most + 1] = stored @ stored.mT
    algebra[:, :, -2] = 1.0
    algebra[:, :most, -1] = weight
    count = torch.where(rank > 0, rank + 1, 0)
    return ProductFormInverse(directions, algebra, count, 1.0, dtype)
