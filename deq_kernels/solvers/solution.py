"""What every solver returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops import Status
from deq_kernels.ops.termination import Counter, Norm, Tables
from deq_kernels.solvers.machinery.structure import State


@dataclass(frozen=True, slots=True)
class Solution:
    """Outcome of one batched fixed-point solve; everything is per sample.

    Attributes:
        z: the best iterate of each sample, in the structure of z0. Detached.
        tables: the solve's own record, from which the properties below are read.
        rows: what `evaluations` is made of: a number, or a 0-d tensor where only the device of the
            solve knows it; None for the sum of `steps`.
        inverse_jacobian: estimate of (J − I)⁻¹ at the end of the solve, for solvers that build
            one, else None.
        rtol: the relative tolerance that was used: what the solver was given, or the unit of the
            working precision where that is larger (`solvers/machinery/precision.py`); None where
            there was none.
        atol: the absolute one.
    """

    z: State
    tables: Tables = field(repr=False)
    rows: int | Tensor | None
    inverse_jacobian: InverseJacobian | None = field(default=None, repr=False)
    rtol: float | None = None
    atol: float | None = None

    @staticmethod
    def joined(solutions: Sequence[Solution]) -> Solution:
        """Solves with equal `max_steps` as one, the samples of the first before the second's.

        Args:
            solutions: at least one; z and the tolerances are the last one's.
        """
        if len(solutions) == 1:
            return solutions[0]
        tables = [solution.tables for solution in solutions]
        together = Tables(
            torch.cat([table.record for table in tables]),
            torch.cat([table.counters for table in tables]),
            torch.stack([table.active for table in tables]).sum(0),
        )
        last = solutions[-1]
        rows = sum(solution.evaluations for solution in solutions)
        return Solution(last.z, together, rows, rtol=last.rtol, atol=last.atol)

    @property
    def status(self) -> Tensor:
        """[B] int64, values of `Status`."""
        return self.tables.status

    @property
    def steps(self) -> Tensor:
        """[B] int64, evaluations of f that the sample used."""
        return self.tables.counters[:, Counter.STEPS]

    @property
    def residual(self) -> Tensor:
        """[B] float64, ‖f(z) − z‖₂ at the returned z."""
        return self.tables.norms[:, Norm.BEST]

    @property
    def trace(self) -> Tensor:
        """[B, max_steps] float64, ‖f(z) − z‖₂ at each evaluation, NaN after the sample stopped."""
        return self.tables.trace

    @property
    def converged(self) -> Tensor:
        """[B] bool: which samples met the tolerance."""
        return self.status == Status.CONVERGED

    @property
    def evaluations(self) -> int:
        """How many rows f was evaluated on, all evaluations together; a row is one sample.

        Where all samples are evaluated until the last has stopped, that is the batch size times the
        number of evaluations; with `compact=True` it is little more than the sum of `steps`. Of a
        structured cell it is that sum, and on a GPU reading it waits for the solve.
        """
        return int(self.steps.sum() if self.rows is None else self.rows)

    def summary(self) -> str:
        """One line for logs: how many samples ended how, and after how many steps.

        On a GPU this waits for the solve, as every look at the values of a tensor does.
        """
        if not len(self.steps):
            return "no samples"
        counts = ", ".join(
            f"{int((self.status == status).sum())} {status.name.lower()}"
            for status in Status
            if bool((self.status == status).any())
        )
        return (
            f"{counts}; steps {self.steps.double().mean():.1f} on average, at most "
            f"{int(self.steps.max())}; residual at most {self.residual.max():.2e}"
        )
