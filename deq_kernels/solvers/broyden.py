"""Limited-memory good Broyden with one stored vector per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from deq_kernels.inverse import ProductFormInverse
from deq_kernels.ops import broyden
from deq_kernels.ops.termination import Counter
from deq_kernels.solvers.base import Iteration, Solver, check_count, check_option
from deq_kernels.solvers.loop import StepFunction


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Good Broyden on r(z) = f(z) − z: z ← z − α H r(z), H kept as a product of rank-one factors.

    The first step is the damped fixed-point step. A sample whose history is full starts again
    from H₀; the default history holds every step, which SHINE wants. A residual that is not
    finite, or has grown by `divergence_factor`, sends its sample back to its best iterate with an
    empty history, once; the second time the sample has diverged. The solution's
    `inverse_jacobian` includes the last secant pair, unless the history was full.

    Source: docs/algebra.md, section 1; Broyden 1965; Kelley 1995, chapter 7.

    Args:
        history_length: factors kept per sample; None for as many as `max_steps` can need.
        damping: step length α along the Broyden direction.
        history_dtype: dtype of the stored directions; None for the state's. bfloat16 halves the
            memory and traffic of a float32 solve.
        gamma: scale of the initial inverse, H₀ = −γ I.
        max_steps: see `Solver`, as for every other option.
    """

    history_length: int | None = None
    damping: float = 1.0
    history_dtype: torch.dtype | None = None
    gamma: float = 1.0

    builds_inverse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_length is not None:
            check_count("history_length", self.history_length)
        check_option("damping", self.damping, 0 < self.damping <= 2, "above 0 and at most 2")
        check_option("gamma", self.gamma, 0 < self.gamma < float("inf"), "finite and above 0")

    def _prepare(
        self, iteration: Iteration, keep_inverse: bool
    ) -> tuple[StepFunction, Callable[[], ProductFormInverse]]:
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
            gamma=self.gamma,
            stall_steps=self.stall_steps or 0,
            divergence_factor=self.divergence_factor,
            finish_inverse=keep_inverse,
        )

        def finish() -> ProductFormInverse:
            count = tables.counters[:, Counter.COUNT]
            return ProductFormInverse(
                history.directions, history.algebra, count, self.gamma, z.dtype
            )

        return step, finish
