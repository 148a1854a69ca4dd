"""The stopping rule for solvers whose steps are their own."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.ops import damped
from deq_kernels.ops.termination import Counter, Status
from deq_kernels.solvers.base import Iteration, Solver


class Judge:
    """Norms, statuses, trace and best iterate of evaluations f(z), as every solver takes them.

    The op of the damped step is what judges, so that the rule is stated once. It also moves z to
    f(z): the caller writes the next z of each running sample afterwards.
    """

    def __init__(self, options: Solver, iteration: Iteration) -> None:
        self.counters = iteration.tables.counters
        self._active = iteration.tables.active
        self._max_steps = options.max_steps
        self._step = damped.bind_step(
            iteration.z,
            iteration.best_z,
            iteration.tables,
            damped.new_scratch(iteration.z),
            rtol=options.rtol,
            atol=options.atol,
            damping=1.0,
            stall_steps=options.stall_steps or 0,
            divergence_factor=options.divergence_factor,
        )

    @property
    def running(self) -> Tensor:
        """[batch] bool: which samples have not stopped."""
        return self.counters[:, Counter.STATUS] == Status.RUNNING

    @property
    def diverged(self) -> Tensor:
        """[batch] bool: which samples have diverged."""
        return self.counters[:, Counter.STATUS] == Status.DIVERGED

    def __call__(self, f_z: Tensor, forgiven: Tensor | None = None) -> Tensor:
        """Judge f(z) [batch, dim] of the running samples.

        A rejected residual (not finite, or grown by `divergence_factor`) is forgiven once, and
        always where `forgiven` [batch] bool says so, but never at the first evaluation.

        Returns:
            [batch] bool: running samples whose residual was rejected.
        """
        running = self.running
        self._step(f_z)
        status, steps, rejections = (
            self.counters[:, c] for c in (Counter.STATUS, Counter.STEPS, Counter.REJECTIONS)
        )
        rejected = running & self.diverged & (steps > 1)
        if forgiven is None:
            spared = rejected & (rejections < 1)
            rejections += spared
        else:
            spared = rejected & ((rejections < 1) | forgiven)
            rejections += spared & ~forgiven
        status.masked_fill_(spared, int(Status.RUNNING))
        status.masked_fill_(spared & (steps >= self._max_steps), int(Status.MAX_STEPS))
        self._active.copy_(self.running.sum())
        return spared & self.running
