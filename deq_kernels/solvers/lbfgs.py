"""Limited-memory BFGS for minimisation problems, which may learn the direction of the outer one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.norms import unit_of
from deq_kernels.options import check_callback, check_choice, check_count, check_positive
from deq_kernels.solvers.base import Iteration, Prepared, Solver
from deq_kernels.solvers.machinery.callbacks import (
    StateFunction,
    ValueFunction,
    call_for_state,
    call_for_values,
    check_outer_problem,
)
from deq_kernels.solvers.machinery.inverse_hessian import InverseHessian
from deq_kernels.solvers.machinery.judge import Judge
from deq_kernels.solvers.machinery.line_search import LINE_SEARCHES, LineSearch
from deq_kernels.solvers.machinery.vectors import dot, norm, surely_all, surely_none, write

LARGEST_ORDINARY = 2.0**300
"""Entries up to this, and down to its reciprocal, need no unit."""


@dataclass(frozen=True, kw_only=True)
class LBFGS(Solver):
    """L-BFGS with outer-problem awareness for z* = argmin r_θ(z), given as f(z) = z − ∇r_θ(z).

    The fixed points of f are where g = ∇r_θ vanishes: its residual is f(z) − z = −g(z) and its
    residual Jacobian −∇²r_θ, which must be symmetric. With H ≈ (∇²r_θ)⁻¹ each iteration n takes

        p = −H g(z),   z ← z + α p,   H updated with s = α p and y = the change of g,

    where ⟨s, y⟩ > 0. The solution's `inverse_jacobian` is −H, so that `Shine` gets
    w = −(−H)ᵀ ℓ = H ℓ. With `opa_every` = M, every M-th iteration (the first included) also
    evaluates f at z + e with e = t H g_θ(z), g_θ = ∂g/∂θ from `outer_gradient`, and updates H with
    e and g(z + e) − g(z), where their product is positive: this makes H g_θ, which SHINE takes for
    a single hyperparameter θ, tend to the exact one. t is the length of the last step.

    Every evaluation of f counts as a step and is judged by its residual ‖g‖: iterates, trial points
    of the line search and the points z + e alike; the best of all is returned. ‖g‖ need not fall
    from step to step while r_θ does, so `stall_steps` may have to be larger than elsewhere. A trial
    point whose residual is rejected (not finite, or grown by `divergence_factor`) shortens the
    step. Without line search it sends its sample back to its best iterate with an empty history,
    once; the second time the sample has diverged. A search that fails, or a direction that does not
    descend, empties the sample's history.

    Source: SHINE, appendix A; `InverseHessian` for the update.

    Args:
        opa_every: M; None for no awareness of the outer problem.
        outer_gradient: g_θ as a function of the iterate, a state of the same structure. It is
            called with a copy of the iterate, autograd being on. Goes with `opa_every`.
        opa_first_step: t of the first iteration, where there is no last step.
        line_search: "strong_wolfe"; "armijo", backtracking; None for α = 1.
        objective: r_θ as a function of the iterate, one value per sample [batch], for the line
            search. Where its relative change is below the square root of its rounding unit, and
            without it, the search makes do with gradients (approximate Wolfe conditions).
        history_length: pairs kept per sample, those of `opa_every` included; the oldest is dropped.
            None for as many as `max_steps` can need.
        gamma: scale of the initial inverse Hessian, γ I. With a short history it should be about
            1 / ‖∇²r_θ‖: few pairs cannot correct it in all directions.
        max_steps: see `Solver`, as for every other option.
    """

    opa_every: int | None = None
    outer_gradient: StateFunction | None = None
    opa_first_step: float = 1.0
    line_search: str | None = "strong_wolfe"
    objective: ValueFunction | None = None
    history_length: int | None = None
    gamma: float = 1.0

    builds_inverse: ClassVar[bool] = True
    capturable: ClassVar[bool] = False
    interruptible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_outer_problem(self.opa_every, self.outer_gradient)
        check_choice("line_search", self.line_search, (*LINE_SEARCHES, None))
        check_callback("objective", self.objective)
        if self.objective is not None and self.line_search is None:
            raise ValueError(
                "objective is for the line search; got one with line_search=None. Leave it out, "
                "or choose a line search."
            )
        if self.history_length is not None:
            check_count("history_length", self.history_length)
        check_positive("opa_first_step", self.opa_first_step)
        check_positive("gamma", self.gamma)

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        steps = _Steps(self, iteration, keep_inverse)
        return steps.step, steps.hessian.negative


class _Steps:
    """The steps of one solve. Each evaluation of a sample is one of three.

    - `fresh`: the start, or the best iterate that a sample was sent back to;
    - `probing`: the point z + e of an additional update;
    - otherwise a trial point of a line search from `point`, where the gradient is `gradient`.

    Points, gradients and directions are kept in `unit` [batch, 1], a power of two per sample, so
    that no product of two of them leaves the range of float64; None where all of them are 1. H does
    not depend on it: it is the same for s and y as for multiples of both.
    """

    def __init__(self, options: LBFGS, iteration: Iteration, keep_inverse: bool) -> None:
        self.options = options
        self.structure = iteration.structure
        self.keep_inverse = keep_inverse
        self.z, self.best_z = iteration.z, iteration.best_z
        self.judge = Judge(options, iteration)
        batch, device = len(self.z), self.z.device
        most = max(1, options.max_steps - 1)
        length = most if options.history_length is None else min(options.history_length, most)
        self.hessian = InverseHessian(self.z, length, options.gamma)
        self.search: LineSearch | None = None
        if options.line_search is not None:
            self.search = LineSearch(options.line_search, batch, device)
        self.accum = accumulate_dtype(self.z.dtype)
        self.fresh = torch.ones(batch, dtype=torch.bool, device=device)
        self.probing = torch.zeros_like(self.fresh)
        self.point = torch.zeros_like(self.z, dtype=self.accum)
        self.gradient = torch.zeros_like(self.point)
        self.direction = torch.zeros_like(self.point)
        # Buffers for all steps: fresh memory costs more than what is computed in it.
        self.new_point, self.new_gradient, self.change, self.gradient_change = (
            torch.empty_like(self.point) for _ in range(4)
        )
        self.value = torch.zeros(batch, dtype=torch.float64, device=device)
        self.iteration = torch.zeros(batch, dtype=torch.int64, device=device)
        self.step_length = torch.full_like(self.value, options.opa_first_step)
        self.hessian.most = 0
        self.unit: Tensor | None = None

    def step(self, f_z: Tensor) -> None:
        """Use f(z) and write the next z."""
        self.hessian.expect_pair()  # an evaluation brings one at most
        value, rounding = self._value()
        running = self.judge.running
        point = self.new_point.copy_(self.z)  # the judge writes to z
        gradient = torch.sub(point, f_z.to(self.accum), out=self.new_gradient)
        if self.accum == torch.float64:
            self._change_unit(point, gradient)
        probed, tried = running & self.probing, running & ~self.probing & ~self.fresh
        forgiven = probed if self.search is None else probed | tried
        rejected = self.judge(f_z, forgiven)
        usable = running & ~rejected & ~self.judge.diverged
        still = self.judge.running

        accepted, exhausted = self._judge_trial(tried, usable, gradient, value, rounding)
        arrived = usable & still & (accepted | self.fresh)
        dots = self._learn(usable, accepted | probed, tried | probed, surely_all(arrived))
        moved = arrived & ~self.fresh
        if self.options.opa_every is not None:
            length = norm(torch.sub(point, self.point, out=self.change))
            self.step_length = torch.where(moved, length, self.step_length)
        self.iteration = self.iteration + moved
        self._arrive(arrived)
        self.value = torch.where(arrived, value, self.value)

        restarted = still & exhausted
        self.hessian.reset_(restarted)
        lost = rejected & ~forgiven
        self.hessian.reset_(lost)
        due = self._due(arrived)
        turning = still & ((arrived & ~due) | probed | restarted)
        self.fresh = (self.fresh & ~arrived) | lost
        self.probing = due
        self._go_on(due, turning, tried & still & ~arrived & ~restarted & ~lost, lost, dots)

    def _change_unit(self, point: Tensor, gradient: Tensor) -> None:
        """Choose the unit from the first point and its gradient; divide both by it."""
        if self.hessian.most == 1:
            unit = unit_of(torch.maximum(point.abs(), gradient.abs()))
            ordinary = (unit >= 1 / LARGEST_ORDINARY) & (unit <= LARGEST_ORDINARY)
            if not surely_all(ordinary):
                self.unit = torch.where(ordinary, 1.0, unit)
                self.step_length = self.step_length / self.unit[:, 0]
        if self.unit is not None:
            point.div_(self.unit)
            gradient.div_(self.unit)

    def _write(self, x: Tensor, samples: Tensor) -> None:
        """z ← x, given in units, for `samples` [batch] bool."""
        write(self.z, x if self.unit is None else x * self.unit, samples)

    def _value(self) -> tuple[Tensor, float]:
        """r_θ at z, and the rounding unit of its values; NaN where it is not given."""
        if self.options.objective is None:
            return torch.full_like(self.value, torch.nan), 0.0
        return call_for_values("objective", self.options.objective, self.structure, self.z)

    def _judge_trial(
        self, tried: Tensor, usable: Tensor, gradient: Tensor, value: Tensor, rounding: float
    ) -> tuple[Tensor, Tensor]:
        """Which trial points are accepted, and which searches have failed."""
        if self.search is None:
            return tried & usable, torch.zeros_like(tried)
        slope = torch.where(tried & usable, dot(gradient, self.direction), 0.0)
        change = value - self.value
        # Rounding decides over changes near its unit; far above it slopes are already as good.
        vague = change.abs() <= math.sqrt(rounding) * self.value.abs()
        change = torch.where(vague, torch.nan, change)
        if self.unit is not None:
            change = change / self.unit[:, 0] / self.unit[:, 0]
        if self.options.objective is not None:
            usable = usable & value.isfinite()
        return self.search.judge(tried, usable, slope, change)

    def _learn(
        self, usable: Tensor, kept: Tensor, measured: Tensor, all_arrive: bool
    ) -> Tensor | None:
        """Update H with the pairs from `point` [batch, dim] to where z was evaluated.

        A sample that stops learns from its last evaluation too, whatever that was.

        Returns:
            Dots of the new gradient for `matvec`, if it is the next right-hand side of all samples.
        """
        stopped = ~self.judge.running
        learning = usable & ((kept & ~stopped) | (measured & stopped & self.keep_inverse))
        if surely_none(learning):
            return None
        s = torch.sub(self.new_point, self.point, out=self.change)
        y = torch.sub(self.new_gradient, self.gradient, out=self.gradient_change)
        following = self.new_gradient if all_arrive else None
        dots = self.hessian.append_(s, y, learning, following)[1]
        return dots if all_arrive else None

    def _arrive(self, arrived: Tensor) -> None:
        """Make the point that was evaluated the one that the samples in `arrived` go on from."""
        if surely_all(arrived):
            self.point, self.new_point = self.new_point, self.point
            self.gradient, self.new_gradient = self.new_gradient, self.gradient
        else:
            write(self.point, self.new_point, arrived)
            write(self.gradient, self.new_gradient, arrived)

    def _due(self, arrived: Tensor) -> Tensor:
        """The samples whose iteration has an additional update."""
        if self.options.opa_every is None:
            return torch.zeros_like(arrived)
        return arrived & (self.iteration % self.options.opa_every == 0)

    def _go_on(
        self, due: Tensor, turning: Tensor, searching: Tensor, lost: Tensor, dots: Tensor | None
    ) -> None:
        """Write the next z: z + e, the first point along a new direction, or the next trial."""
        right = self.gradient
        if self.options.outer_gradient is not None and not surely_none(due):
            point = self.point if self.unit is None else self.point * self.unit
            state = point.to(self.z.dtype)
            outer = call_for_state(
                "outer_gradient", self.options.outer_gradient, self.structure, state
            )
            right = torch.where(due[:, None], outer.to(self.accum), right)
            dots = None
        if not (surely_none(due) and surely_none(turning)):
            product = self.hessian.matvec(right, due | turning, dots)
            if not surely_none(due):
                length = self.step_length[:, None].to(self.accum)
                change = torch.mul(product, length, out=self.change)
                self._write(change.add_(self.point), due)
            self._turn(turning, product.neg_())
        alpha = torch.ones_like(self.value) if self.search is None else self.search.alpha
        moving = turning | searching
        if not surely_none(moving):
            change = torch.mul(self.direction, alpha[:, None].to(self.accum), out=self.change)
            self._write(change.add_(self.point), moving)
        write(self.z, self.best_z, lost)

    def _turn(self, turning: Tensor, direction: Tensor) -> None:
        """Go along −H g, or along −γ g with an empty history where that does not descend."""
        if surely_none(turning):
            return
        slope = dot(self.gradient, direction)
        ascending = turning & ~(slope < 0)
        if surely_all(turning):
            self.direction = direction
        else:
            write(self.direction, direction, turning)
        if not surely_none(ascending):
            self.hessian.reset_(ascending)
            gamma = self.options.gamma
            write(self.direction, -gamma * self.gradient, ascending)
            slope = torch.where(ascending, -gamma * dot(self.gradient, self.gradient), slope)
        if self.search is not None:
            self.search.begin(turning, slope)
