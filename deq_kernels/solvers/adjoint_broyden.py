"""The adjoint Broyden method, which may learn the direction of the outer problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.inverse import LowRankInverse
from deq_kernels.ops import low_rank
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.options import check_count, check_damping, check_positive
from deq_kernels.solvers.base import Iteration, Prepared, Solver
from deq_kernels.solvers.machinery.callbacks import (
    StateFunction,
    call_for_state,
    check_outer_problem,
)
from deq_kernels.solvers.machinery.evaluation import RecordedEvaluation
from deq_kernels.solvers.machinery.judge import Judge
from deq_kernels.solvers.machinery.vectors import (
    StoredVectors,
    dot,
    surely_all,
    surely_none,
    write,
)

DEGENERATE_SHARE = 1e-8
"""An update whose ⟨b, σ⟩ is below this share of ‖b‖ ‖σ‖ is left out."""


@dataclass(frozen=True, kw_only=True)
class AdjointBroyden(Solver):
    """Adjoint Broyden on r(z) = f(z) − z: z ← z − α H r(z), H made to agree with J_r from the left.

    After the update with a direction σ at the new iterate, with J_r = J − I there,

        b = Hᵀ J_rᵀ σ,   H ← H + (H σ) (σ − b)ᵀ / ⟨b, σ⟩,

    H satisfies σᵀ H⁻¹ = σᵀ J_r, that is Hᵀ (J_rᵀ σ) = σ. After every step σ = r(z), the residual.
    With `opa_every` = M, every M-th step also updates with σ = v, vᵀ = ℓᵀ H, where ℓ is what
    `outer_gradient` returns: outer-problem awareness, which makes the product ℓᵀ H that `Shine`
    takes tend to the exact one.

    Each update takes one product with Jᵀ: f must be differentiable by autograd, which records it
    here, one evaluation at a time. The first step is the damped fixed-point step. A sample whose
    history is full starts again from H₀; the default history holds every update. A residual that
    is not finite, or has grown by `divergence_factor`, sends its sample back to its best iterate
    with an empty history, once; the second time the sample has diverged. The solution's
    `inverse_jacobian` includes the last update, unless the history was full.

    Source: SHINE, equations 7 and 8; Schlenkrich, Griewank & Walther 2010, the residual update.

    Args:
        opa_every: M; None for no awareness of the outer problem.
        outer_gradient: ℓ as a function of the iterate, a state of the same structure. It is
            called with a copy of the iterate, autograd being on. Goes with `opa_every`.
        history_length: pairs kept per sample; None for as many as `max_steps` can need.
        damping: step length α.
        gamma: scale of the initial inverse, H₀ = −γ I.
        max_steps: see `Solver`, as for every other option.
    """

    opa_every: int | None = None
    outer_gradient: StateFunction | None = None
    history_length: int | None = None
    damping: float = 1.0
    gamma: float = 1.0

    builds_inverse: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True
    capturable: ClassVar[bool] = False
    interruptible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_outer_problem(self.opa_every, self.outer_gradient)
        if self.history_length is not None:
            check_count("history_length", self.history_length)
        check_damping(self.damping)
        check_positive("gamma", self.gamma)

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        steps = _Steps(self, iteration, keep_inverse)
        return steps.step, steps.inverse

    def most_updates(self) -> int:
        """The number of updates that `max_steps` evaluations can bring."""
        steps = self.max_steps - 1
        return max(1, steps + (steps // self.opa_every if self.opa_every else 0))


class _Steps:
    """The steps of one solve, and the factors of its H."""

    def __init__(self, options: AdjointBroyden, iteration: Iteration, keep_inverse: bool) -> None:
        assert isinstance(iteration.evaluation, RecordedEvaluation)
        self.options = options
        self.vjp = iteration.evaluation.vjp
        self.keep_inverse = keep_inverse
        self.z, self.best_z = iteration.z, iteration.best_z
        self.judge = Judge(options, iteration)
        self.accum = accumulate_dtype(self.z.dtype)
        # Buffers for all steps: fresh memory costs more than what is computed in it.
        self.state = torch.empty_like(self.z)
        self.residual = torch.empty_like(self.z, dtype=self.accum)
        self.taken = 0
        most = options.most_updates()
        length = most if options.history_length is None else min(options.history_length, most)
        self.length = length
        self.u, self.v = (StoredVectors(self.z, length, self.accum) for _ in range(2))
        # No sample has more pairs than this; products are made for as many.
        self.most = 0
        self.rank = torch.zeros(len(self.z), dtype=torch.int64, device=self.z.device)
        self.outer_gradient: Callable[[Tensor], Tensor] | None = None
        if options.outer_gradient is not None:
            self.outer_gradient = partial(
                call_for_state, "outer_gradient", options.outer_gradient, iteration.structure
            )

    def inverse(self) -> LowRankInverse:
        """H as it stands."""
        u, v = self.u.stored, self.v.stored
        return LowRankInverse(u, v, self.rank, self.options.gamma, self.z.dtype)

    def step(self, f_z: Tensor) -> None:
        """Update H from f(z) and write the next z."""
        running = self.judge.running
        state = self.state.copy_(self.z)  # the judge writes to z
        point = state.to(self.accum)
        residual = torch.sub(f_z.to(self.accum), point, out=self.residual)
        rejected = self.judge(f_z)
        moving = self.judge.running & ~rejected

        first = self.taken == 0
        due = self.options.opa_every is not None and self.taken % self.options.opa_every == 0
        self.taken += 1
        self.rank.masked_fill_(rejected, 0)
        if not first:
            updated = moving
            if self.keep_inverse:  # a sample that stops still learns from its last residual
                updated = running & ~rejected & ~self.judge.diverged
            self._update(residual, updated, moving)
            if due and self.outer_gradient is not None and not surely_none(updated):
                gradient = self.outer_gradient(state).to(self.accum)
                self._update(self._product(gradient, updated, transpose=True), updated, moving)

        change = self._product(residual, moving, transpose=False)
        change.mul_(self.options.damping)
        write(self.z, torch.sub(point, change, out=change), moving)
        write(self.z, self.best_z, rejected)

    def _product(self, x: Tensor, samples: Tensor, *, transpose: bool) -> Tensor:
        """H x, or Hᵀ x, for x [batch, dim] of `samples`; −γ x for the others."""
        rank = torch.where(samples, self.rank, 0)
        product = low_rank.rmatvec if transpose else low_rank.matvec
        known = min(self.most + 1, self.length)
        u, v = self.u.stored[:, :known], self.v.stored[:, :known]
        return product(u, v, rank, x[:, None], scale=-self.options.gamma)[:, 0]

    def _update(self, sigma: Tensor, updated: Tensor, moving: Tensor) -> None:
        """Update H with σ [batch, dim] for the samples in `updated`, where it is not degenerate.

        A full history is emptied first, but not for a sample that stops.
        """
        full = self.rank == self.length
        self.rank.masked_fill_(full & moving & updated, 0)
        # H does not depend on the size of σ; entries of about 1 keep all products in range.
        size = sigma.abs().amax(dim=1) if sigma.shape[1] else sigma.new_zeros(len(sigma))
        usable = updated & size.isfinite() & (size > 0) & (self.rank < self.length)
        if surely_none(usable):
            return
        sigma = sigma / size[:, None]
        if not surely_all(usable):  # f's derivative must not see what has no meaning
            sigma = torch.where(usable[:, None], sigma, 0.0)
        sigma_state = sigma.to(self.z.dtype)
        sigma = sigma_state.to(self.accum)
        pulled = self.vjp(sigma_state).to(self.accum) - sigma
        b = self._product(pulled, usable, transpose=True)
        denominator = dot(b, sigma)
        bound = dot(b, b).sqrt() * dot(sigma, sigma).sqrt() * DEGENERATE_SHARE
        scale = denominator.to(self.accum)
        accepted = usable & scale.isfinite() & (denominator.abs() > bound)
        accepted &= (1.0 / scale).isfinite()
        self.u.put(self.rank, self._product(sigma, usable, transpose=False), accepted)
        scale = torch.where(accepted, scale, 1.0)[:, None]
        self.v.put(self.rank, torch.sub(sigma, b, out=b).div_(scale), accepted)
        self.rank += accepted
        self.most += 1
