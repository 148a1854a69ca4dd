"""What a deep equilibrium layer does on a batch, measured without changing it."""

from deq_kernels.diagnostics.diagnose import diagnose
from deq_kernels.diagnostics.diagnosis import (
    Diagnosis,
    EstimatorReport,
    ForwardReport,
    JacobianReport,
)
from deq_kernels.diagnostics.estimators import default_estimators

__all__ = [
    "Diagnosis",
    "EstimatorReport",
    "ForwardReport",
    "JacobianReport",
    "default_estimators",
    "diagnose",
]
