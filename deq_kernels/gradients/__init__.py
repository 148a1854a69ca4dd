"""Gradients of implicit layers: one object per estimator."""

from deq_kernels.gradients.base import AdjointGradient, Gradient
from deq_kernels.gradients.implicit import Implicit
from deq_kernels.gradients.jacobian_free import JacobianFree
from deq_kernels.gradients.neumann import Neumann
from deq_kernels.gradients.shine import Shine
from deq_kernels.gradients.unrolled import Unrolled

__all__ = [
    "AdjointGradient",
    "Gradient",
    "Implicit",
    "JacobianFree",
    "Neumann",
    "Shine",
    "Unrolled",
]
