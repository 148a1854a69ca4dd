"""Fused kernels, solvers and gradients for deep equilibrium models.

solution = Broyden(max_steps=30, rtol=1e-4)(f, z0)
layer = DEQ(cell, solver=Broyden(max_steps=18, rtol=1e-3), gradient=Shine(fallback=1.3))
"""

from deq_kernels import cells
from deq_kernels._report import backend_info
from deq_kernels._version import __version__
from deq_kernels.gradients import (
    Adaptive,
    Gradient,
    Implicit,
    JacobianFree,
    Limited,
    Neumann,
    Shine,
    Unrolled,
)
from deq_kernels.inverse import InverseJacobian, LowRankInverse, ProductFormInverse
from deq_kernels.layer import DEQ
from deq_kernels.notices import (
    CoupledSamplesWarning,
    DetachedStateWarning,
    SolveError,
    UnconvergedWarning,
)
from deq_kernels.ops import Status, use_backend
from deq_kernels.solvers import (
    GMRES,
    LBFGS,
    AdjointBroyden,
    Anderson,
    Broyden,
    FixedPoint,
    PerSample,
    RootResult,
    Solution,
    Solver,
    empty_cache,
    root,
)

__all__ = [
    "DEQ",
    "GMRES",
    "LBFGS",
    "Adaptive",
    "AdjointBroyden",
    "Anderson",
    "Broyden",
    "CoupledSamplesWarning",
    "DetachedStateWarning",
    "FixedPoint",
    "Gradient",
    "Implicit",
    "InverseJacobian",
    "JacobianFree",
    "Limited",
    "LowRankInverse",
    "Neumann",
    "PerSample",
    "ProductFormInverse",
    "RootResult",
    "Shine",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "UnconvergedWarning",
    "Unrolled",
    "__version__",
    "backend_info",
    "cells",
    "empty_cache",
    "root",
    "use_backend",
]
