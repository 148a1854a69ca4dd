"""How a run solves for the equilibrium, and how the gradient passes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from deq_kernels.gradients import GRADIENTS as GRADIENT_TYPES
from deq_kernels.options import check_choice, check_count, check_not_negative, check_positive
from deq_kernels.solvers import SOLVERS as SOLVER_TYPES

SOLVERS = tuple(SOLVER_TYPES)
BACKWARD_SOLVERS = tuple(name for name, solver in SOLVER_TYPES.items() if not solver.differentiates)
"""Solvers that need products with Jᵀ alone, which is what the adjoint equation gives."""
GRADIENTS = tuple(GRADIENT_TYPES)
STEPPED = ("neumann", "unrolled", "limited")
"""Gradients with a fixed number of steps."""
DAMPED = ("neumann", "unrolled")
"""Gradients whose steps are damped."""
BUILD_INVERSE = tuple(name for name, solver in SOLVER_TYPES.items() if solver.builds_inverse)
"""Solvers that leave an inverse Jacobian behind."""
NEED_INVERSE = tuple(name for name, gradient in GRADIENT_TYPES.items() if gradient.needs_inverse)
"""Gradients that use it."""

# The settings read the choices from the types; type checkers cannot know them.
if TYPE_CHECKING:
    SolverName: TypeAlias = str
    BackwardSolverName: TypeAlias = str
    GradientName: TypeAlias = str
else:
    SolverName = Literal[SOLVERS]
    BackwardSolverName = Literal[BACKWARD_SOLVERS]
    GradientName = Literal[GRADIENTS]


@dataclass(frozen=True, kw_only=True)
class EquilibriumConfig:
    """The solvers and the gradient of a run.

    Args:
        solver: of the forward solve. gmres is for cells that are affine in their state, lbfgs for
            those that are the state less a gradient; others it leaves unconverged.
        forward_steps: most evaluations of the cell in it.
        rtol: relative tolerance of the forward solve, and of the implicit backward solve.
        atol: absolute tolerance of both.
        gradient: the estimator; jfb is the Jacobian-free one.
        backward_solver: of the implicit gradient.
        backward_steps: implicit, adaptive: most vector-Jacobian products.
        gradient_steps: neumann, unrolled, limited: number of steps (None: 5). Others take none.
        damping: neumann, unrolled: λ (None: 0.5). Others take none.
        tolerance: adaptive: largest relative residual (None: 1e-3). Others take none.
        warm_start: start each solve from the solution of the last batch, where the shapes fit.
        compact: evaluate the cell only on the samples that still run. The rounding of a sample may
            then depend on the others, where the cell's own does on the size of the batch.

    Raises:
        ValueError: an option is out of its range, belongs to another gradient, or the gradient
            needs another solver.
    """

    solver: SolverName = "broyden"
    forward_steps: int = 30
    rtol: float = 1e-3
    atol: float = 0.0
    gradient: GradientName = "implicit"
    backward_solver: BackwardSolverName = "broyden"
    backward_steps: int = 30
    gradient_steps: int | None = None
    damping: float | None = None
    tolerance: float | None = None
    warm_start: bool = False
    compact: bool = False

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, SOLVERS)
        check_choice("gradient", self.gradient, GRADIENTS)
        check_choice("backward_solver", self.backward_solver, BACKWARD_SOLVERS)
        check_count("forward_steps", self.forward_steps)
        check_count("backward_steps", self.backward_steps)
        check_not_negative("rtol", self.rtol)
        check_not_negative("atol", self.atol)
        if self.gradient_steps is not None:
            check_count("gradient_steps", self.gradient_steps)
        for name in ("damping", "tolerance"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), or_else="None")
        for name, owners in (
            ("gradient_steps", STEPPED),
            ("damping", DAMPED),
            ("tolerance", ("adaptive",)),
        ):
            if getattr(self, name) is not None and self.gradient not in owners:
                raise ValueError(
                    f"{name} applies to {', '.join(owners)}, but the gradient is {self.gradient}; "
                    "leave it out, or choose another gradient"
                )
        if self.compact and self.solver not in BACKWARD_SOLVERS:
            raise ValueError(
                f"the solver {self.solver} differentiates the cell for all samples together, but "
                "compact is set; leave it out, or choose another solver"
            )
        if self.gradient in NEED_INVERSE and self.solver not in BUILD_INVERSE:
            raise ValueError(
                f"the gradient {self.gradient} uses the inverse Jacobian that a quasi-Newton solve "
                f"leaves behind, but the solver is {self.solver}; choose "
                f"{' or '.join(BUILD_INVERSE)}, or another gradient"
            )

    def with_gradient(self, name: str, *, solver: str | None = None) -> EquilibriumConfig:
        """Another gradient with the defaults of its own options.

        Args:
            name: of the gradient.
            solver: of the forward solve; None: as it is.

        Raises:
            ValueError: a name is unknown, or the gradient needs another solver.
        """
        return replace(
            self,
            gradient=name,
            solver=self.solver if solver is None else solver,
            gradient_steps=None,
            damping=None,
            tolerance=None,
        )
