"""Fused kernels, solvers and gradients for deep equilibrium models.

solution = Broyden(max_steps=30, rtol=1e-4)(f, z0)
layer = DEQ(cell, solver=Broyden(max_steps=18, rtol=1e-3), gradient=Shine(fallback=1.3))
"""

from deq_kernels import cells, gradients, solvers
from deq_kernels._report import backend_info
from deq_kernels._version import __version__
from deq_kernels.gradients import Gradient
from deq_kernels.gradients.registry import *  # noqa: F403
from deq_kernels.inverse import InverseJacobian, LowRankInverse, ProductFormInverse
from deq_kernels.layer import DEQ
from deq_kernels.notices import (
    CoupledSamplesWarning,
    DetachedStateWarning,
    SolveError,
    UnconvergedWarning,
)
from deq_kernels.ops import Status, use_backend
from deq_kernels.solvers import PerSample, RootResult, Solution, Solver, empty_cache, root
from deq_kernels.solvers.registry import *  # noqa: F403

__all__ = [
    "DEQ",
    "CoupledSamplesWarning",
    "DetachedStateWarning",
    "Gradient",
    "InverseJacobian",
    "LowRankInverse",
    "PerSample",
    "ProductFormInverse",
    "RootResult",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "UnconvergedWarning",
    "__version__",
    "backend_info",
    "cells",
    "empty_cache",
    "root",
    "use_backend",
]
__all__ += solvers.registry.__all__
__all__ += gradients.registry.__all__
