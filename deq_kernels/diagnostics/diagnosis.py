"""What a diagnosis holds: plain numbers, per sample where a sample has its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deq_kernels.diagnostics.diagnosis_plot import plot_diagnosis
from deq_kernels.diagnostics.diagnosis_text import format_diagnosis


@dataclass(frozen=True, kw_only=True)
class ForwardReport:
    """The forward solve.

    Attributes:
        solver: which one, with the options that are not its defaults.
        status: name of each sample's `Status`, in lower case.
        steps: evaluations of f that each sample used.
        residual: ‖f(z*) − z*‖₂ of each sample.
        trace: ‖f(z) − z‖₂ at each evaluation, up to the sample's last.
        reduction: (last residual of the solution / first residual)^(1 / (steps − 1)), the mean
            factor per evaluation; NaN for a sample that took one step.
        distance: ‖z* − z0‖₂ of each sample.
        norm: ‖z*‖₂ of each sample.
    """

    solver: str
    status: tuple[str, ...]
    steps: tuple[int, ...]
    residual: tuple[float, ...]
    trace: tuple[tuple[float, ...], ...]
    reduction: tuple[float, ...]
    distance: tuple[float, ...]
    norm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class JacobianReport:
    """∂f/∂z at the solution, by `deq_kernels.nn.spectral_radius`.

    Attributes:
        spectral_radius: of each sample; below 1 plain iteration converges near z*, and the Neumann
            series of the adjoint converges.
        converged: whether the estimate met its tolerance.
        steps: VJPs it took.
    """

    spectral_radius: tuple[float, ...]
    converged: tuple[bool, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EstimatorReport:
    """One estimator against the exact gradient.

    Attributes:
        name: its name.
        skipped: why it was not measured, or None; the numbers are empty then.
        adjoint_cosine: cosine between its w and the exact one, per sample; NaN where one is zero.
        adjoint_norm_ratio: ‖w‖₂ over that of the exact one, per sample.
        adjoint_residual: ‖ℓ + Jᵀw − w‖₂ / ‖ℓ‖₂, per sample.
        parameter_cosine: cosine between its gradient over all parameters and the exact one; None
            without parameters.
        parameter_norm_ratio: likewise.
        vjps: products with Jᵀ: backward passes through f but the one that reaches the parameters.
        evaluations: of f, recorded by autograd.
    """

    name: str
    skipped: str | None = None
    adjoint_cosine: tuple[float, ...] = ()
    adjoint_norm_ratio: tuple[float, ...] = ()
    adjoint_residual: tuple[float, ...] = ()
    parameter_cosine: float | None = None
    parameter_norm_ratio: float | None = None
    vjps: int = 0
    evaluations: int = 0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `diagnose` measured; `print(diagnosis)` shows it as a table.

    Attributes:
        batch: B.
        dim: d, elements of one sample's state.
        dtype: of the state.
        parameters: numbers in all parameters that gradients were compared on.
        forward: the forward solve.
        jacobian: ∂f/∂z at its solution.
        exact: the reference, itself measured; its `adjoint_residual` says how exact it is.
        estimators: each estimator against it.
    """

    batch: int
    dim: int
    dtype: str
    parameters: int
    forward: ForwardReport
    jacobian: JacobianReport
    exact: EstimatorReport
    estimators: tuple[EstimatorReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON as Python writes it (which has NaN)."""
        return asdict(self)

    def __str__(self) -> str:
        return format_diagnosis(self)

    def plot(self, path: str | Path) -> None:
        """Draw the residuals of the solve and the estimators' cosines and norm ratios.

        Args:
            path: file to write, .png, .svg or .pdf.

        Raises:
            ImportError: matplotlib is not installed.
        """
        plot_diagnosis(self, Path(path))
