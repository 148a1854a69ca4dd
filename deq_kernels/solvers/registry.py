"""The solvers by name: what `root`, training, the drop-ins and the documents offer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deq_kernels.solvers.adjoint_broyden import AdjointBroyden
from deq_kernels.solvers.anderson import Anderson
from deq_kernels.solvers.base import Solver
from deq_kernels.solvers.broyden import Broyden
from deq_kernels.solvers.fixed_point import FixedPoint
from deq_kernels.solvers.gmres import GMRES
from deq_kernels.solvers.lbfgs import LBFGS

__all__ = ["GMRES", "LBFGS", "AdjointBroyden", "Anderson", "Broyden", "FixedPoint"]

SOLVERS: Mapping[str, type[Solver]] = MappingProxyType(
    {
        "broyden": Broyden,
        "anderson": Anderson,
        "fixed_point": FixedPoint,
        "adjoint_broyden": AdjointBroyden,
        "lbfgs": LBFGS,
        "gmres": GMRES,
    }
)
