"""The damped fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

from deq_kernels.ops import damped
from deq_kernels.options import check_damping
from deq_kernels.solvers.base import Iteration, Prepared, Solver


@dataclass(frozen=True, kw_only=True)
class FixedPoint(Solver):
    """z ← z + λ (f(z) − z), known as Picard iteration for λ = 1.

    Args:
        damping: λ, above 0 and at most 2; 1 is the undamped iteration.
        max_steps: see `Solver`, as for every other option.
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        step = damped.bind_step(
            iteration.z,
            iteration.best_z,
            iteration.tables,
            damped.new_scratch(iteration.z),
            rtol=self.rtol,
            atol=self.atol,
            damping=self.damping,
            stall_steps=self.stall_steps or 0,
            divergence_factor=self.divergence_factor,
        )
        return step, lambda: None
