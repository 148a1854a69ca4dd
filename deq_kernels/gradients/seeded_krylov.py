"""A Krylov method for the adjoint equation that starts from an estimate of the inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.termination import Counter, Norm, Status
from deq_kernels.solvers import Solver
from deq_kernels.solvers.base import Iteration
from deq_kernels.solvers.machinery.loop import StepFunction
from deq_kernels.solvers.machinery.rank_algebra import place, tree_sum
from deq_kernels.solvers.machinery.vectors import StoredVectors, dot, norm

GOOD_STEP = 0.9
"""A step that leaves more of the residual than this is followed by the image it was made with."""

ROUNDING_SHARE = 4.0
"""How many units of rounding a product with Jᵀ, or a sum over all directions, may be off by."""

LARGEST_ERROR = 0.5
"""What is new in an image is noise if its estimated error is above this share of it."""

MARGIN = 0.1
"""The share of the tolerance that this drift may have."""

PROGRESS_SHARE = 0.99
"""A measured residual above this share of the one measured before is no progress."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeededKrylov(Solver):
    """Solves A w = ℓ, A = I − Jᵀ, given products Jᵀp and a rough inverse P of A.

    Each step takes one product, with a direction p = P v. Of what it adds to the images A p of the
    directions before, it makes one more orthonormal vector q = A p, and with α = ⟨q, r⟩

        w ← w + α p,   r ← r − α q,

    so that ‖r‖ is the smallest in the space of all directions so far. v is ℓ at first, then r, or
    q where r has hardly fallen: with v = r alone the method could come to a standstill.
    The first p is P ℓ: where it solves the equation within the tolerance it is returned as it is.

    r is updated, not measured. How far rounding may have taken it away from ℓ − A w is estimated
    along the way. Where that matters next to the tolerance, w is measured by one more product
    before it counts as a solution; if it is none the method starts again from the residual
    measured, as long as that falls.

    A sample for which P yields something that is not finite, or nothing new, goes on without P.
    When that happens again it has diverged, or stalled. A sample of which no w with a known
    residual below ‖ℓ‖ was found returns w = ℓ, with NaN for its residual.

    As a solver it is called with the products Jᵀp in the place of f, and with P ℓ as the start.
    Residuals are relative to ‖ℓ‖.

    Source: Jiránek & Rozložník 2010, adaptive simpler GMRES, for the choice of v; Eisenstat, Elman
    & Schultz 1983, GCR; Greenbaum 1997 for the drift of updated residuals.

    Args:
        tolerance: of ‖ℓ − A w‖ / ‖ℓ‖.
        cotangent: ℓ, [B, d].
        estimate: x ↦ P x, [B, d] to [B, d].
        max_steps: most products. The options that stop other solvers do nothing here.
    """

    tolerance: float
    cotangent: Tensor
    estimate: VectorJacobianProduct

    measures_residuals: ClassVar[bool] = False

    def _prepare(
        self, iteration: Iteration, keep_inverse: bool
    ) -> tuple[StepFunction, Callable[[], None]]:
        return _Steps(self, iteration).step, lambda: None

    def _residual(self, iteration: Iteration, f_z: Tensor) -> Tensor:
        """Of rows that stopped at their w; the z of others is a direction, and lets pass."""
        at_w = (iteration.z == iteration.best_z).all(dim=1)
        residual = norm(self.cotangent + f_z - iteration.z) / self._size()
        return torch.where(at_w, residual, 0.0)

    def _tolerance(self, iteration: Iteration, f_z: Tensor) -> tuple[Tensor, Tensor]:
        size = norm(iteration.z) / self._size() + 1
        return torch.full_like(size, self.tolerance), size

    def _size(self) -> Tensor:
        size = norm(self.cotangent)
        return torch.where(size == 0, 1.0, size)


class _Steps:
    """The steps of all samples. z is the next direction of a sample, or a w to be measured."""

    def __init__(self, options: SeededKrylov, iteration: Iteration) -> None:
        self.options = options
        self.z, self.best_z, self.tables = iteration.z, iteration.best_z, iteration.tables
        self.status = self.tables.counters[:, Counter.STATUS]
        self.steps = self.tables.counters[:, Counter.STEPS]
        self.best = self.tables.norms[:, Norm.BEST]
        batch, dim = self.z.shape
        accum = accumulate_dtype(self.z.dtype)
        self.unit = torch.finfo(self.z.dtype).eps
        self.right = options.cotangent.to(accum)
        size = norm(self.right)
        self.size = torch.where(size == 0, 1.0, size)  # a sample without loss is solved
        self.residual = self.right.clone()
        self.w = torch.zeros_like(self.right)
        self.capacity = max(1, min(options.max_steps, dim))
        self.images = StoredVectors(self.z, self.capacity, accum)
        self.directions = StoredVectors(self.z, self.capacity, accum)
        self.count = torch.zeros(batch, dtype=torch.int64, device=self.z.device)
        self.seeded = torch.ones(batch, dtype=torch.bool, device=self.z.device)
        # The start is a direction, and a w as well.
        self.measuring = torch.ones_like(self.seeded)
        self.measured = torch.full_like(size, torch.inf)
        self.largest = torch.zeros_like(size)
        # ‖q − A p‖ of each pair, and what of that got into r: estimates, squared.
        self.pair_error = torch.zeros((batch, self.capacity), dtype=size.dtype, device=size.device)
        self.drift = torch.zeros_like(size)
        self.first = True
        self.best.fill_(torch.nan)
        self.best_z.copy_(options.cotangent)

    def step(self, f_z: Tensor) -> None:
        """Use Jᵀz and write the next z."""
        running = self.status == Status.RUNNING
        self.steps += running
        point = self.z.to(self.right.dtype)
        image = point - f_z.to(self.right.dtype)
        finite = image.isfinite().all(dim=1)
        lost = running & ~finite

        solved, failed = self._measure(running & finite & self.measuring, point, image)
        going = running & finite & ~solved
        extending = going if self.first else going & ~self.measuring
        new, image, share = self._extend(extending, point, image)
        self.first = False

        reduced = norm(self.residual) / self.size
        claimed = going & (reduced <= self.options.tolerance)
        exact = self._rounding() <= MARGIN * self.options.tolerance
        self._keep(new & exact, self.w, reduced)
        self._record(running, reduced)

        stuck = (extending & ~new) | lost
        ended = stuck & ~self.seeded
        self.seeded = self.seeded & ~stuck
        self._stop(solved | (claimed & exact), Status.CONVERGED)
        self._stop(failed | (ended & finite), Status.STALLED)
        self._stop(ended & ~finite, Status.DIVERGED)
        self._stop(self.steps >= self.options.max_steps, Status.MAX_STEPS)
        self.tables.active.copy_((self.status == Status.RUNNING).sum())
        last = self.steps == self.options.max_steps - 1
        self.measuring = ~exact & (claimed | last)
        self._go_on(torch.where((new & (share > GOOD_STEP))[:, None], image, self.residual))

    def _measure(self, samples: Tensor, point: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Judge z as a w by its true residual.

        Returns:
            [batch] bool: samples that are solved, and those that make no progress any more.
        """
        true = self.right - image
        length = norm(true) / self.size
        solved = samples & (length <= self.options.tolerance)
        if self.first:
            self._keep(solved | (samples & (length < 1)), self.z, length)
            self.tables.trace[:, 0] = length
            return solved, torch.zeros_like(solved)
        better = samples & ~(length >= self.best)  # also where best is NaN
        self._keep(better, self.z, length)
        failed = samples & ~solved & ~(length < PROGRESS_SHARE * self.measured)
        self.measured = torch.where(samples, length, self.measured)
        self.w = torch.where(samples[:, None], point, self.w)
        self.residual = torch.where(samples[:, None], true, self.residual)
        self.drift = torch.where(samples, 0.0, self.drift)
        self.count = torch.where(samples, 0, self.count)
        return solved, failed

    def _extend(
        self, samples: Tensor, direction: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take in a direction and its image, and reduce the residual.

        Returns:
            [batch] bool: samples for which there was something new; the new part of the image,
            [batch, dim] of length 1; and what is left of the residual, [batch].
        """
        image = torch.where(samples[:, None], image, 0.0)
        direction = torch.where(samples[:, None], direction, 0.0)
        count = torch.where(samples, self.count, 0)
        before = norm(image)
        error = (ROUNDING_SHARE * self.unit * before).square()
        for _ in range(2):  # once more, for orthogonality up to rounding
            coefficients = self.images.dots(count, image)
            image = self.images.combine(count, -coefficients, image, 1.0)
            direction = self.directions.combine(count, -coefficients, direction, 1.0)
            error = error + tree_sum(coefficients.square() * self.pair_error)
        height = norm(image)
        new = samples & (error < (LARGEST_ERROR * height).square()) & (self.count < self.capacity)
        scale = torch.where(new, height, 1.0)[:, None]
        column = new[:, None]
        image = torch.where(column, image / scale, 0.0).to(self.right.dtype)
        direction = torch.where(column, direction / scale, 0.0).to(self.right.dtype)
        slot = self.count.clamp(max=self.capacity - 1)
        self.images.put(slot, image, new)
        self.directions.put(slot, direction, new)
        self.count = self.count + new

        length = norm(self.residual)
        alpha = torch.where(new, dot(image, self.residual), 0.0)[:, None]
        error = torch.where(new, error / scale[:, 0].square(), 0.0)
        self.pair_error = place(self.pair_error, slot, error, new)
        self.drift = self.drift + alpha[:, 0].square() * error
        self.w = torch.where(column, self.w + alpha * direction, self.w).to(self.right.dtype)
        moved = (self.residual - alpha * image).to(self.right.dtype)
        self.residual = torch.where(column, moved, self.residual)
        return new, image, norm(self.residual) / length

    def _rounding(self) -> Tensor:
        """How far the residual may be from the true one, relative to ‖ℓ‖."""
        self.largest = torch.maximum(self.largest, norm(self.w))
        in_w = ROUNDING_SHARE * self.unit * self.largest
        return (in_w.square() + self.drift).sqrt() / self.size

    def _keep(self, samples: Tensor, w: Tensor, residual: Tensor) -> None:
        self.best_z.copy_(torch.where(samples[:, None], w.to(self.z.dtype), self.best_z))
        self.best.copy_(torch.where(samples, residual, self.best))

    def _record(self, running: Tensor, residual: Tensor) -> None:
        """Write the trace, but for the first entry, which is the residual of the start."""
        index = (self.steps - 1).clamp(min=0)[:, None]
        written = (running & (self.steps > 1))[:, None]
        before = self.tables.trace.gather(1, index)
        self.tables.trace.scatter_(1, index, torch.where(written, residual[:, None], before))

    def _stop(self, samples: Tensor, status: Status) -> None:
        running = self.status == Status.RUNNING
        self.status.masked_fill_(samples & running, int(status))

    def _go_on(self, v: Tensor) -> None:
        """Write the next z: P v, or v without P, or w where it is to be measured."""
        length = norm(v)
        v = v / torch.where(length > 0, length, 1.0)[:, None].to(v.dtype)
        direction = v.to(self.z.dtype)
        direction = torch.where(self.seeded[:, None], self.options.estimate(direction), direction)
        self.z.copy_(torch.where(self.measuring[:, None], self.w.to(self.z.dtype), direction))
