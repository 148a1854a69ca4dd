"""Fixed-point solvers: short loops over one op per step."""

from deq_kernels.solvers.base import Solver, check_count
from deq_kernels.solvers.broyden import Broyden
from deq_kernels.solvers.fixed_point import FixedPoint
from deq_kernels.solvers.memory import empty_cache
from deq_kernels.solvers.solution import Solution
from deq_kernels.solvers.structure import State, Structure, evaluate

__all__ = [
    "Broyden",
    "FixedPoint",
    "Solution",
    "Solver",
    "State",
    "Structure",
    "check_count",
    "empty_cache",
    "evaluate",
]
