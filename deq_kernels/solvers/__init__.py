"""Fixed-point solvers: short loops over one op per step."""

from deq_kernels.solvers import registry
from deq_kernels.solvers.base import Solver
from deq_kernels.solvers.machinery.capture import empty_cache
from deq_kernels.solvers.machinery.compaction import PerSample
from deq_kernels.solvers.machinery.structure import State, Structure, evaluate
from deq_kernels.solvers.registry import *  # noqa: F403
from deq_kernels.solvers.registry import SOLVERS
from deq_kernels.solvers.root_finding import RootResult, root
from deq_kernels.solvers.solution import Solution

__all__ = [
    "SOLVERS",
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
__all__ += registry.__all__
