"""Fixed-point solvers: short loops over one op per step."""

from deq_kernels.solvers.adjoint_broyden import AdjointBroyden
from deq_kernels.solvers.anderson import Anderson
from deq_kernels.solvers.base import Solver
from deq_kernels.solvers.broyden import Broyden
from deq_kernels.solvers.fixed_point import FixedPoint
from deq_kernels.solvers.gmres import GMRES
from deq_kernels.solvers.lbfgs import LBFGS
from deq_kernels.solvers.machinery.capture import empty_cache
from deq_kernels.solvers.machinery.compaction import PerSample
from deq_kernels.solvers.machinery.structure import State, Structure, evaluate
from deq_kernels.solvers.root_finding import RootResult, root
from deq_kernels.solvers.solution import Solution

__all__ = [
    "GMRES",
    "LBFGS",
    "AdjointBroyden",
    "Anderson",
    "Broyden",
    "FixedPoint",
    "PerSample",
    "RootResult",
    "Solution",
    "Solver",
    "State",
    "Structure",
    "empty_cache",
    "evaluate",
    "root",
]
