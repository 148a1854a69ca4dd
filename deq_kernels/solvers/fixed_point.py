"""The damped fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.cells.iteration import without_autocast
from deq_kernels.cells.map import StructuredMap
from deq_kernels.ops import damped
from deq_kernels.options import check_damping
from deq_kernels.solvers.base import Iteration, Prepared, Solver
from deq_kernels.solvers.machinery.unsupported import refuse_meta, refuse_trace
from deq_kernels.solvers.solution import Solution


@dataclass(frozen=True, kw_only=True)
class FixedPoint(Solver):
    """z ← z + λ (f(z) − z), known as Picard iteration for λ = 1.

    The map of a structured cell is solved in one op (`deq_kernels.cells`), unless `cuda_graph`,
    `compact` or `synchronized` is set.

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

    @property
    def takes_structured(self) -> bool:
        """Whether the map of a structured cell can be solved in one op."""
        return not self.cuda_graph and not self.compact and self.synchronized is False

    def solve_structured(self, f: StructuredMap, z0: Tensor) -> Solution:
        """Solve z = f(z) from z0 [N, n] in one op, each sample by itself; rtol is as in `Solver`.

        Raises:
            NotImplementedError: the solve would be recorded by torch.jit.trace, or z0 has no
                values.
        """
        refuse_meta(z0.device)
        refuse_trace()
        with torch.no_grad(), without_autocast(z0):
            limits = self.visible_limits(z0)
            z, tables = f.iterate(z0, limits, self.damping)
        return Solution(z, tables, None, rtol=limits.rtol, atol=limits.atol)
