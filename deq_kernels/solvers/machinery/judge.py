"""The stopping rule for solvers that evaluate f elsewhere than along damped steps."""

from __future__ import annotations

from torch import Tensor

from deq_kernels.ops import damped
from deq_kernels.ops.termination import Counter, Status
from deq_kernels.solvers.base import Iteration, Solver
from deq_kernels.solvers.machinery.precision import visible_rtol


class Judge:
    """Norms, statuses, trace and best iterate of evaluations f(z), as every solver takes them.

    The op of the damped step is what judges, so that the rule is stated once. It also moves z to
    f(z): whoever asks for a judgement writes the next z of each running sample afterwards.
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
            rtol=visible_rtol(options.rtol, iteration.z.dtype, iteration.z.device.type),
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

    @property
    def steps(self) -> Tensor:
        """[batch] int64: evaluations of each sample."""
        return self.counters[:, Counter.STEPS]

    def __call__(self, f_z: Tensor, judged: Tensor, forgiven: Tensor | None = None) -> Tensor:
        """Judge f(z) [batch, dim] of the running samples in `judged`, [batch] bool.

        A rejected residual (not finite, or grown by `divergence_factor`) is forgiven once, and
        always where `forgiven` says so, but never at the first evaluation.

        Returns:
            [batch] bool: running samples whose residual was rejected.
        """
        status = self.counters[:, Counter.STATUS]
        held = self.running & ~judged
        # The op leaves alone what does not run.
        status.masked_fill_(held, int(Status.MAX_STEPS))
        self._active.copy_(judged.sum())
        self._step(f_z)
        status.masked_fill_(held, int(Status.RUNNING))
        diverged = judged & self.diverged & (self.steps > 1)
        return self._forgive(diverged, forgiven)

    def reject(self, samples: Tensor) -> Tensor:
        """Count a rejection against running `samples`; those that had one before have diverged.

        Returns:
            [batch] bool: which of them still run.
        """
        self.counters[:, Counter.STATUS].masked_fill_(samples, int(Status.DIVERGED))
        return self._forgive(samples, None)

    def _forgive(self, diverged: Tensor, forgiven: Tensor | None) -> Tensor:
        status, rejections = (self.counters[:, c] for c in (Counter.STATUS, Counter.REJECTIONS))
        spared = diverged & (rejections < 1)
        if forgiven is not None:
            spared = diverged & ((rejections < 1) | forgiven)
            rejections += spared & ~forgiven
        else:
            rejections += spared
        status.masked_fill_(spared, int(Status.RUNNING))
        status.masked_fill_(spared & (self.steps >= self._max_steps), int(Status.MAX_STEPS))
        self._active.copy_(self.running.sum())
        return spared & self.running
