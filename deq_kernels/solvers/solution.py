"""What every solver returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deq_kernels.inverse import InverseJacobian
from deq_kernels.ops import Status
from deq_kernels.solvers.structure import State


@dataclass(frozen=True, slots=True)
class Solution:
    """Outcome of one batched fixed-point solve; everything is per sample.

    Attributes:
        z: the best iterate of each sample, in the structure of z0. Detached.
        status: [B] int64, values of `Status`.
        steps: [B] int64, evaluations of f that the sample used.
        residual: [B] float64, ‖f(z) − z‖₂ at the returned z.
        trace: [B, max_steps] float64, ‖f(z) − z‖₂ at each evaluation, NaN after the sample
            stopped.
        inverse_jacobian: estimate of (J − I)⁻¹ at the end of the solve, for solvers that build
            one, else None.
    """

    z: State
    status: Tensor
    steps: Tensor
    residual: Tensor
    trace: Tensor
    inverse_jacobian: InverseJacobian | None = field(default=None, repr=False)

    @property
    def converged(self) -> Tensor:
        """[B] bool: which samples met the tolerance."""
        return self.status == Status.CONVERGED

    def summary(self) -> str:
        """One line for logs: how many samples ended how, and after how many steps."""
        counts = ", ".join(
            f"{int((self.status == status).sum())} {status.name.lower()}"
            for status in Status
            if bool((self.status == status).any())
        )
        if not len(self.steps):
            return "no samples"
        return (
            f"{counts}; steps {self.steps.double().mean():.1f} on average, at most "
            f"{int(self.steps.max())}; residual at most {self.residual.max():.2e}"
        )
