"""Gradients of implicit layers: one object per estimator."""

from deq_kernels.gradients import registry
from deq_kernels.gradients.base import AdjointGradient, Gradient, LayerCall
from deq_kernels.gradients.first_evaluation import record_first
from deq_kernels.gradients.registry import *  # noqa: F403
from deq_kernels.gradients.registry import GRADIENTS
from deq_kernels.gradients.transforms import refuse_tangents, refuse_transforms
from deq_kernels.gradients.watch import Equation, failures

__all__ = [
    "GRADIENTS",
    "AdjointGradient",
    "Equation",
    "Gradient",
    "LayerCall",
    "failures",
    "record_first",
    "refuse_tangents",
    "refuse_transforms",
]
__all__ += registry.__all__
