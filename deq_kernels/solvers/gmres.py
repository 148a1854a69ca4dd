"""Restarted GMRES for affine maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.ops.norms import power_below
from deq_kernels.ops.termination import Counter
from deq_kernels.options import check_count
from deq_kernels.solvers.base import Iteration, Solver
from deq_kernels.solvers.idle import idle
from deq_kernels.solvers.judge import Judge
from deq_kernels.solvers.loop import StepFunction
from deq_kernels.solvers.rank_algebra import apply, grow_inverse, place, tree_sum
from deq_kernels.solvers.rows import Rows, dot, norm, write
from deq_kernels.solvers.uncaptured import refuse_cuda_graph

BREAKDOWN_SHARE = 4.0
"""Image components outside the Krylov space below this many units of rounding are none."""

MARGIN = 0.95
"""A cycle ends when the residual it predicts is below this share of the tolerance."""


@dataclass(frozen=True, kw_only=True)
class GMRES(Solver):
    """Restarted GMRES for w = f(w) with an affine f(w) = A w + b, such as w = Jᵀw + ℓ.

    From w₀ it minimises ‖b − (I − A) w‖ over w₀ + span(r₀, M r₀, …, Mʲ⁻¹ r₀), M = I − A, with
    r₀ = f(w₀) − w₀. f is evaluated at w₀, then once for each of the j products
    M v = (r(w₀) − r(w₀ + t v)) / t, then at the minimiser, which is where the next cycle starts.
    In exact arithmetic a sample of d elements is solved after d + 2 evaluations.

    Only true residuals, those at the start of a cycle and at its end, make a sample converge, stall
    or diverge, and only such points are returned: where f is not affine, what a cycle predicted
    does not come true, and the status tells. The trace holds true residuals there, and in between
    what the cycle predicts for the minimiser. The last evaluation is always at a minimiser; with
    too few left for a cycle it is at f(w₀). A product that is not finite ends its cycle without it,
    once; the second time the sample has diverged.

    Arnoldi's method by classical Gram–Schmidt, done twice; Givens rotations and all else of the
    size of the cycle per sample in float64; vectors in float32 for states of 16 bits.

    Source: Saad & Schultz 1986, algorithm 4; Giraud et al. 2005 for the orthogonalisation.

    Args:
        restart: products with M per cycle, at most; as many vectors of the state's size are kept.
        max_steps: see `Solver`, as for every other option. Every evaluation of f counts.
    """

    restart: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_cuda_graph(self)
        check_count("restart", self.restart)

    def _prepare(
        self, iteration: Iteration, keep_inverse: bool
    ) -> tuple[StepFunction, Callable[[], None]]:
        return _Cycles(self, iteration).step, lambda: None


class _Cycles:
    """The cycles of all samples; each sample is at its own place in its own cycle.

    A sample is either `checking`, with z the start of its next cycle, or z = w₀ + t v with v the
    newest vector of its basis. Products with a basis skip samples whose count is zero.
    """

    def __init__(self, options: GMRES, iteration: Iteration) -> None:
        self.options = options
        self.z, self.best_z = iteration.z, iteration.best_z
        self.trace = iteration.tables.trace
        self.judge = Judge(options, iteration)
        batch, dim = self.z.shape
        device = self.z.device
        self.accum = accumulate_dtype(self.z.dtype)
        self.breakdown = BREAKDOWN_SHARE * torch.finfo(self.z.dtype).eps
        columns = max(1, min(options.restart, dim, options.max_steps - 2))
        self.columns = columns
        self.basis = Rows(self.z, columns, self.accum)
        self.count = torch.zeros(batch, dtype=torch.int64, device=device)
        self.checking = torch.ones(batch, dtype=torch.bool, device=device)
        self.start = torch.zeros_like(self.z, dtype=self.accum)
        self.start_residual = torch.zeros_like(self.start)
        # One buffer for all steps: fresh memory costs more than what is computed in it.
        self.residual = torch.empty_like(self.start)

        def table(*shape: int) -> Tensor:
            return torch.zeros((batch, *shape), dtype=torch.float64, device=device)

        self.scale = table()  # t, a power of two
        self.start_norm = table()
        self.along_start = table(columns)  # ⟨v_j, w₀⟩
        self.rotations = table(columns + 1, columns + 1)  # all Givens rotations so far, multiplied
        self.triangle_inverse = table(columns, columns)
        self.right = table(columns + 1)  # the rotated ‖r₀‖ e₁; its last entry is the residual
        self.predicted = table()
        self.identity = torch.eye(columns + 1, dtype=torch.float64, device=device)

    def step(self, f_z: Tensor) -> None:
        """Use f(z) and write the next z."""
        running = self.judge.running
        checked, probed = running & self.checking, running & ~self.checking
        f_accum = f_z.to(self.accum)
        residual = torch.sub(f_accum, self.z, out=self.residual)
        if not idle(checked):
            self._check(f_z, checked, f_accum, residual)
        self._extend(probed, residual)

    def _check(self, f_z: Tensor, checked: Tensor, f_accum: Tensor, residual: Tensor) -> None:
        """Judge the samples that have reached the end of a cycle, and start the next one."""
        point = self.z.to(self.accum, copy=True)  # the judge writes to z
        rejected = self.judge(f_z, checked)
        write(self.z, self.best_z, rejected)
        begun = self.judge.running & checked & ~rejected
        self._begin(begun, point, f_accum, residual)

    def _remaining(self) -> Tensor:
        return self.options.max_steps - self.judge.steps

    def _begin(self, begun: Tensor, point: Tensor, f_point: Tensor, residual: Tensor) -> None:
        """Start a cycle at w₀ = point, unless only its end could still be evaluated."""
        begun = begun & (self._remaining() >= 2)
        if idle(begun) or not self.z.shape[1]:  # a state without elements is solved at once
            return
        column = begun[:, None]
        newest = (self.judge.steps - 1).clamp(min=0)[:, None]
        length = torch.where(begun, self.trace.gather(1, newest)[:, 0], 1.0)
        largest = torch.maximum(point.abs(), f_point.abs()).amax(dim=1).double()
        # t of the size of w₀ and f(w₀) leaves the least rounding in the difference of residuals.
        size = torch.where(begun, largest * math.sqrt(self.z.shape[1]), 1.0)
        scale = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent)

        write(self.start, point, begun)
        write(self.start_residual, residual, begun)
        self.scale = torch.where(begun, scale, self.scale)
        self.start_norm = torch.where(begun, norm(point), self.start_norm)
        self.rotations = torch.where(column[:, :, None], self.identity, self.rotations)
        self.triangle_inverse.masked_fill_(column[:, :, None], 0.0)
        self.right = torch.where(column, length[:, None] * self.identity[0], self.right)
        self.predicted = torch.where(begun, length, self.predicted)
        self.count = torch.where(begun, 0, self.count)
        self._probe(begun, residual / length[:, None].to(self.accum))

    def _probe(self, samples: Tensor, direction: Tensor) -> None:
        """Add `direction` to the basis and go to w₀ + t v with it; overwrites it."""
        if idle(samples):
            return
        slot = self.count.clamp(max=self.columns - 1)
        self.basis.put(slot, direction, samples)
        if self.options.rtol:  # only a relative tolerance asks for ‖w‖
            along = dot(direction, self.start)
            self.along_start = place(self.along_start, slot, along, samples)
        self.count = self.count + samples
        # One operation at a time: torch may fuse a product with a sum in some elements and not in
        # others, depending on where in the batch they are.
        moved = direction.mul_(self.scale[:, None].to(self.accum)).add_(self.start)
        write(self.z, moved, samples)
        self.checking = self.checking & ~samples

    def _extend(self, probed: Tensor, residual: Tensor) -> None:
        """Take in M v of the newest v, and go on or end the cycle; overwrites `residual`."""
        if idle(probed):
            return
        # t is a power of two, so that t M v is as good as M v until numbers are rank-sized.
        image = torch.sub(self.start_residual, residual, out=residual)
        count = torch.where(probed, self.count, 0)
        along = self.basis.project_out_(count, image)
        height = norm(image)
        finite = height.isfinite()
        taken = probed & finite
        along = torch.where(taken[:, None], along / self.scale[:, None], 0.0)
        height = torch.where(taken, height / self.scale, 0.0)
        image_norm = (tree_sum(along.square()) + height.square()).sqrt()
        height = torch.where(height > self.breakdown * image_norm, height, 0.0)
        singular = self._rotate(taken, along, height)
        self._record(probed, taken)

        remaining = self._remaining()
        coefficients = apply(self.triangle_inverse, self.right[:, : self.columns])
        spent = (self.count == self.columns) | (remaining < 2) | (height == 0.0) | singular
        ended = taken & (spent | (self.predicted <= MARGIN * self._tolerance(coefficients)))
        lost = self.judge.reject(probed & ~finite)
        self._end(ended | lost, coefficients)
        going_on = taken & ~ended
        size = torch.where(going_on, self.scale * height, 1.0)
        self._probe(going_on, image.div_(size[:, None].to(self.accum)))

    def _rotate(self, taken: Tensor, along: Tensor, height: Tensor) -> Tensor:
        """Append the column (along, height) to the least-squares problem of each sample in `taken`.

        Returns:
            [batch] bool: samples whose column adds nothing; it is left out of the solution.
        """
        newest = (self.count - 1).clamp(min=0)
        column = torch.nn.functional.pad(along, (0, 1))
        column = place(column, newest + 1, height, taken)
        rotated = apply(self.rotations, column)
        samples = torch.arange(len(newest), device=newest.device)
        a, b = rotated[samples, newest], rotated[samples, newest + 1]
        diagonal = (a * a + b * b).sqrt()
        column_size = tree_sum(column.square()).sqrt()
        singular = taken & ~(diagonal > self.breakdown * column_size)
        taken = taken & ~singular
        safe = torch.where(taken, diagonal, 1.0)
        c, s = a / safe, b / safe

        upper, lower = self.rotations[samples, newest], self.rotations[samples, newest + 1]
        turned = c[:, None] * upper + s[:, None] * lower
        turned_below = c[:, None] * lower - s[:, None] * upper
        self.rotations = place(self.rotations, newest, turned, taken)
        self.rotations = place(self.rotations, newest + 1, turned_below, taken)
        last = self.right[samples, newest]
        self.right = place(self.right, newest, c * last, taken)
        self.right = place(self.right, newest + 1, -s * last, taken)
        self.predicted = torch.where(taken, (s * last).abs(), self.predicted)

        above = torch.arange(self.columns, device=newest.device) < newest[:, None]
        self.triangle_inverse = grow_inverse(
            self.triangle_inverse,
            newest,
            torch.where(above, rotated[:, : self.columns], 0.0),
            safe,
            taken,
        )
        return singular

    def _record(self, probed: Tensor, taken: Tensor) -> None:
        """Count the evaluation, with the residual predicted, or NaN where there is none."""
        steps = self.judge.steps
        index = steps.clamp(max=self.options.max_steps - 1)[:, None]
        value = torch.where(taken, self.predicted, torch.nan)[:, None]
        before = self.trace.gather(1, index)
        self.trace.scatter_(1, index, torch.where(probed[:, None], value, before))
        self.judge.counters[:, Counter.STEPS] += probed

    def _tolerance(self, coefficients: Tensor) -> Tensor:
        """The tolerance at the minimiser w, with ‖f(w)‖ ≥ ‖w‖ − ‖r‖ and w = w₀ + Σ y_j v_j."""
        # In a unit in which no square leaves the range of float64.
        unit = power_below(torch.maximum(self.start_norm, coefficients.abs().amax(dim=1)))
        along, y = self.along_start / unit[:, None], coefficients / unit[:, None]
        cross, own = tree_sum(y * along), tree_sum(y.square())
        square = (self.start_norm / unit).square() + 2 * cross + own
        w_norm = unit * square.clamp(min=0.0).sqrt()
        return self.options.atol + self.options.rtol * (w_norm - self.predicted).clamp(min=0.0)

    def _end(self, ended: Tensor, coefficients: Tensor) -> None:
        """Go to the minimiser of the cycle."""
        if idle(ended):
            return
        count = torch.where(ended, self.count, 0)
        write(self.z, self.basis.combine(count, coefficients, self.start, 1.0), ended)
        self.checking = self.checking | ended
