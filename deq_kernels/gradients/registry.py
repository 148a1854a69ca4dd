"""The gradient estimators by name: what training, diagnostics and the documents offer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deq_kernels.gradients.adaptive import Adaptive
from deq_kernels.gradients.base import Gradient
from deq_kernels.gradients.implicit import Implicit
from deq_kernels.gradients.jacobian_free import JacobianFree
from deq_kernels.gradients.limited import Limited
from deq_kernels.gradients.neumann import Neumann
from deq_kernels.gradients.shine import Shine
from deq_kernels.gradients.unrolled import Unrolled

__all__ = ["Adaptive", "Implicit", "JacobianFree", "Limited", "Neumann", "Shine", "Unrolled"]

GRADIENTS: Mapping[str, type[Gradient]] = MappingProxyType(
    {
        "implicit": Implicit,
        "jfb": JacobianFree,
        "shine": Shine,
        "neumann": Neumann,
        "unrolled": Unrolled,
        "adaptive": Adaptive,
        "limited": Limited,
    }
)
