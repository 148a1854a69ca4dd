"""Damped steps in PyTorch: the formulas every backend follows.

Source: docs/algebra.md, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deq_kernels.ops.arguments import check_counters, steps_of
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.norms import norm
from deq_kernels.ops.termination import Tables, judge_


def step_(
    f_z: Tensor,
    z: Tensor,
    best_z: Tensor,
    record: Tensor,
    counters: Tensor,
    active: Tensor,
    scratch: Tensor,
    rtol: float,
    atol: float,
    damping: float,
    stall_steps: int,
    divergence_factor: float,
) -> None:
    """z ← z + λ (f(z) − z) for every running sample; see `deq_kernels.ops.damped.step_`."""
    check_counters(counters, steps_of(record))
    verdict = judge_(
        f_z,
        z,
        Tables(record, counters, active),
        rtol=rtol,
        atol=atol,
        stall_steps=stall_steps,
        divergence_factor=divergence_factor,
        max_rejections=0,
    )
    best_z.copy_(torch.where(verdict.improved[:, None], z, best_z))
    accum = accumulate_dtype(z.dtype)
    f, iterate = f_z.to(accum), z.to(accum)
    moved = f if damping == 1.0 else iterate + damping * (f - iterate)
    z.copy_(torch.where(verdict.advance[:, None], moved.to(z.dtype), z))


def neumann_step_(vjp: Tensor, cotangent: Tensor, w: Tensor, norms: Tensor, damping: float) -> None:
    """w ← λ (ℓ + Jᵀw) + (1 − λ) w; see `deq_kernels.ops.damped.neumann_step_`."""
    accum = accumulate_dtype(w.dtype)
    before = w.to(accum)
    change = damping * (cotangent.to(accum) + vjp.to(accum) - before)
    updated = before + change
    norms[:, 0] = norm(change)
    norms[:, 1] = norm(updated)
    w.copy_(updated)
