"""Gradients of implicit layers: one object per estimator."""

from deq_kernels.gradients.adaptive import Adaptive
from deq_kernels.gradients.base import AdjointGradient, Gradient, LayerCall
from deq_kernels.gradients.first_evaluation import record_first
from deq_kernels.gradients.implicit import Implicit
from deq_kernels.gradients.jacobian_free import JacobianFree
from deq_kernels.gradients.limited import Limited
from deq_kernels.gradients.neumann import Neumann
from deq_kernels.gradients.shine import Shine
from deq_kernels.gradients.transforms import refuse_tangents, refuse_transforms
from deq_kernels.gradients.unrolled import Unrolled
from deq_kernels.gradients.watch import Equation, failures

__all__ = [
    "Adaptive",
    "AdjointGradient",
    "Equation",
    "Gradient",
    "Implicit",
    "JacobianFree",
    "LayerCall",
    "Limited",
    "Neumann",
    "Shine",
    "Unrolled",
    "failures",
    "record_first",
    "refuse_tangents",
    "refuse_transforms",
]
