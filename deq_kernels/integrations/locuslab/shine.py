"""`mdeq_lib.modules.broyden` and `.adj_broyden` of SHINE's fork of mdeq."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deq_kernels.integrations.locuslab.mdeq import (
    HISTORY_LENGTH,
    analyze_broyden,
    matvec,
    rmatvec,
    solve_root,
)
from deq_kernels.integrations.pairs import pairs_from_inverse
from deq_kernels.ops import Status
from deq_kernels.options import check_choice, check_option
from deq_kernels.solvers import AdjointBroyden

__all__ = ["adj_broyden", "analyze_broyden", "broyden", "matvec", "rmatvec"]


def broyden(
    g: Callable[[Tensor], Tensor],
    x0: Tensor,
    threshold: int,
    eps: float,
    ls: bool = False,
    name: str = "unknown",
) -> dict[str, Any]:
    """`locuslab.mdeq.broyden`, whose result also carries the inverse estimate at its end.

    Returns:
        As there, and Us [B, ..., m], VTs [B, m, ...] with m = min(threshold, 27), zero where there
        is no pair: SHINE's w is −rmatvec(Us, VTs, ℓ). The factors of the first k steps are the
        first k pairs. Making two vectors per step out of one takes a product for each;
        inverse_jacobian is the estimate without them, for `rmatvec` of its own or
        `deq_kernels.Shine`.

    Raises:
        ValueError: an option is out of its range.
        TypeError: x0 or g(z) is no state.
    """
    result, finish = solve_root(g, x0, threshold, eps, ls, keep_inverse=True)
    with torch.inference_mode(False), torch.no_grad():
        inverse = finish()
        assert inverse is not None
        capacity = min(threshold, HISTORY_LENGTH)
        us, vts = pairs_from_inverse(inverse, x0.shape, capacity=capacity)
    return {**result, "Us": us, "VTs": vts, "inverse_jacobian": inverse}


def adj_broyden(
    g: Callable[[Tensor], Tensor],
    x0: Tensor,
    threshold: int,
    eps: float,
    ls: bool = False,
    name: str = "unknown",
    adj_type: str = "C",
    inverse_direction_fun: Callable[[Tensor], Tensor] | None = None,
    inverse_direction_freq: int | None = None,
) -> dict[str, Any]:
    """The adjoint Broyden method on g(z) = 0, by `deq_kernels.AdjointBroyden`.

    Each sample stops by itself, at ‖g‖ ≤ eps / √B, which keeps the whole batch within eps. The
    extra update is made with σ = Hᵀ ℓ, as in SHINE's section 2.3; the published code takes H ℓ.

    Args:
        g: the root map, differentiable by autograd.
        x0: a state [B, ...].
        threshold: largest number of steps.
        eps: tolerance on ‖g(z)‖ over the whole batch.
        ls: must be False; there is no line search.
        name: a label; nothing is done with it.
        adj_type: "C", the residual update.
        inverse_direction_fun: ℓ as a function of the iterate; None for no outer-problem awareness.
        inverse_direction_freq: every how many steps it is asked.

    Returns:
        As `broyden`, with per-sample best iterates, up to 27 pairs, and prot_break where a sample
        has diverged.

    Raises:
        ValueError: an option is out of its range.
        TypeError: x0 or g(z) is no state.
    """
    check_choice("adj_type", adj_type, ("C",))
    check_option("ls", ls, ls is False, "False for adj_broyden, which has no line search")
    opa = inverse_direction_fun is not None and inverse_direction_freq is not None
    length = min(threshold, HISTORY_LENGTH)
    solver = AdjointBroyden(
        max_steps=threshold + 1,
        rtol=0.0,
        atol=eps / math.sqrt(max(1, len(x0))),
        history_length=length,
        opa_every=inverse_direction_freq if opa else None,
        outer_gradient=inverse_direction_fun if opa else None,
    )
    visited: list[float] = []
    before: Tensor | None = None

    def f(z: Tensor) -> Tensor:
        nonlocal before
        at = z.detach().clone()
        visited.append(
            -1.0
            if before is None
            else ((at - before).norm() / before.norm().clamp(min=1e-9)).item()
        )
        before = at
        return g(z) + z

    solution = solver(f, x0)
    with torch.inference_mode(False), torch.no_grad():
        assert isinstance(solution.z, Tensor)
        assert solution.inverse_jacobian is not None
        residual = g(solution.z)
        us, vts = pairs_from_inverse(solution.inverse_jacobian, x0.shape, capacity=length)
    per_sample = solution.trace[:, : len(visited)]
    filled = torch.where(per_sample.isnan(), solution.residual[:, None], per_sample)
    trace = filled.square().sum(0).sqrt().tolist()
    steps = len(trace) - 1
    return {
        "result": solution.z,
        "nstep": steps,
        "tnstep": steps,
        "lowest_step": min(range(len(trace)), key=trace.__getitem__),
        "diff": residual.norm().item(),
        "diff_detail": residual.norm(dim=1),
        "prot_break": bool((solution.status == Status.DIVERGED).any()),
        "trace": trace,
        "new_trace": visited,
        "eps": eps,
        "threshold": threshold,
        "Us": us,
        "VTs": vts,
        "inverse_jacobian": solution.inverse_jacobian,
    }
