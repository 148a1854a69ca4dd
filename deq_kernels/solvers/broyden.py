"""Limited-memory good Broyden with one stored vector per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from deq_kernels.inverse import ProductFormInverse
from deq_kernels.ops import broyden
from deq_kernels.ops.broyden.line_search import MAX_BACKTRACKS
from deq_kernels.ops.termination import Counter, Norm
from deq_kernels.options import check_choice, check_count, check_damping, check_positive
from deq_kernels.solvers.base import Iteration, Prepared, Solver


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Good Broyden on r(z) = f(z) − z: z ← z − α H r(z), H kept as a product of rank-one factors.

    The first step is the damped fixed-point step. A sample whose history is full starts again
    from H₀, or drops its oldest factor; the default history holds every step, which SHINE wants. A
    residual that is not finite, or has grown by `divergence_factor`, sends its sample back to its
    best iterate with an empty history, once; the second time the sample has diverged. The
    solution's `inverse_jacobian` includes the last secant pair, unless the history was full and
    drops nothing.

    Source: docs/algebra.md, section 1; Broyden 1965; Kelley 1995, chapter 7. Line search: Li and
    Fukushima 2000; La Cruz, Martínez and Raydan 2006. γ: Barzilai and Borwein 1988, equation 5.

    Args:
        history_length: factors kept per sample; None for as many as `max_steps` can need.
        damping: step length α along the Broyden direction.
        history_dtype: dtype of the stored directions; None for the state's. bfloat16 halves the
            memory and traffic of a float32 solve.
        gamma: scale of the initial inverse, H₀ = −γ I; "auto" starts with 1 and, after the first
            step s, which changes the residual by y, starts the history again with
            γ = −⟨s, y⟩ / ⟨y, y⟩ per sample, within [1e-3, 1e3]; 1 stays where that is not positive.
            For maps whose first step is much too short or too long.
        line_search: None takes every step. "derivative_free" shortens a step p from z until
            ‖r(z + a p)‖ ≤ (1 + 1 / (1 + n)² − 1e-4 a²) ‖r(z)‖ after n evaluations, at most twice.
            Each trial is an evaluation: it is in the trace and counts towards `max_steps`. For maps
            on which plain steps diverge; on others it may cost evaluations.
        when_full: "restart" starts a full history again from H₀; "drop_oldest" lets its oldest
            factor leave, at the cost of moving the history by a row.
        max_steps: see `Solver`, as for every other option.
    """

    history_length: int | None = None
    damping: float = 1.0
    history_dtype: torch.dtype | None = None
    gamma: float | Literal["auto"] = 1.0
    line_search: Literal["derivative_free"] | None = None
    when_full: Literal["restart", "drop_oldest"] = "restart"

    builds_inverse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_length is not None:
            check_count("history_length", self.history_length)
        check_damping(self.damping)
        if self.gamma != "auto":
            check_positive("gamma", self.gamma, or_else="'auto'")
        check_choice("line_search", self.line_search, ("derivative_free", None))
        check_choice("when_full", self.when_full, ("restart", "drop_oldest"))

    def _prepare(self, iteration: Iteration, keep_inverse: bool) -> Prepared:
        z, best_z, tables = iteration.z, iteration.best_z, iteration.tables
        needed = max(1, self.max_steps - 1)
        length = needed if self.history_length is None else min(self.history_length, needed)
        history = broyden.History.new(z, length, self.history_dtype)
        step = broyden.bind_step(
            z,
            best_z,
            history,
            tables,
            rtol=self.rtol,
            atol=self.atol,
            damping=self.damping,
            gamma=1.0 if isinstance(self.gamma, str) else self.gamma,
            stall_steps=self.stall_steps or 0,
            divergence_factor=self.divergence_factor,
            finish_inverse=keep_inverse,
            drop_oldest=self.when_full == "drop_oldest",
            estimate_gamma=self.gamma == "auto",
            max_backtracks=0 if self.line_search is None else MAX_BACKTRACKS,
        )

        def finish() -> ProductFormInverse:
            count = tables.counters[:, Counter.COUNT]
            gamma = tables.norms[:, Norm.GAMMA] if isinstance(self.gamma, str) else self.gamma
            return ProductFormInverse(history.directions, history.algebra, count, gamma, z.dtype)

        return step, finish
