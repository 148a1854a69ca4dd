"""Anderson acceleration of the damped fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deq_kernels.ops import anderson
from deq_kernels.options import check_count, check_damping, check_not_negative
from deq_kernels.solvers.base import Iteration, Prepared, Solver


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """z ← Σ a_i (z_i + β r_i) over the last m iterates, r_i = f(z_i) − z_i.

    The weights minimise ‖Σ a_i r_i‖² + λ ‖a‖² with Σ a_i = 1, each sample by itself, and
    λ = `regularization` · ‖r‖² with the newest residual: the answer does not depend on the scale
    of the problem, nor on how far it has converged, and ‖a‖² never exceeds 1 + 1/regularization.
    (The usual code adds an absolute λ, 1e-4, which turns the method into an average of the last
    iterates as soon as ‖r‖ is below 1e-2.)

    The first step is the damped fixed-point step, and so is every step of a window of 1. An
    evaluation that depends linearly on newer ones, to rounding, is left out; where none is left,
    or a weight is not finite, the sample takes the damped step. No solve raises for numerical
    reasons. A residual that is not finite, or has grown by `divergence_factor`, sends its sample
    back to its best iterate with an empty window, once; the second time the sample has diverged.

    Source: docs/algebra.md, section 4; Anderson 1965; Walker and Ni 2011, equation 2.1 and
    section 4.

    Args:
        history_length: m, the evaluations combined, the newest included; 1 is `FixedPoint`.
        regularization: the ridge relative to ‖r‖², finite and at least 0.
        damping: β, above 0 and at most 2.
        history_dtype: dtype of the stored changes; None for the state's. bfloat16 halves the
            memory and most of the traffic of a float32 solve.
        max_steps: see `Solver`, as for every other option.
    """

    history_length: int = 6
    regularization: float = 1e-8
    damping: float = 1.0
    history_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("history_length", self.history_length)
        check_not_negative("regularization", self.regularization)
        check_damping(self.damping)

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        # The last evaluation is only judged.
        length = min(self.history_length, max(1, self.max_steps - 1))
        window = anderson.Window.new(iteration.z, length, self.history_dtype)
        step = anderson.bind_step(
            iteration.z,
            iteration.best_z,
            window,
            iteration.tables,
            rtol=self.rtol,
            atol=self.atol,
            damping=self.damping,
            regularization=self.regularization,
            stall_steps=self.stall_steps or 0,
            divergence_factor=self.divergence_factor,
        )
        return step, lambda: None
