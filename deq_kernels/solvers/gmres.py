"""Restarted GMRES for affine maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deq_kernels.ops import gmres
from deq_kernels.options import check_count
from deq_kernels.solvers.base import Iteration, Prepared, Solver


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

    interruptible: ClassVar[bool] = False
    predicts_residuals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("restart", self.restart)

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        z = iteration.z
        # A solve of d elements needs no more products than these, nor has evaluations for more.
        columns = max(1, min(self.restart, z.shape[1], self.max_steps - 2))
        step = gmres.bind_step(
            z,
            iteration.best_z,
            gmres.Cycles.new(z, columns),
            iteration.tables,
            rtol=self.rtol,
            atol=self.atol,
            stall_steps=self.stall_steps or 0,
            divergence_factor=self.divergence_factor,
        )
        return step, lambda: None
