"""The exact gradient by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from deq_kernels.gradients.base import AdjointGradient
from deq_kernels.gradients.scaling import scale_of
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct
from deq_kernels.gradients.structured import KnownJacobian
from deq_kernels.gradients.structured_linear import LinearSystem
from deq_kernels.gradients.watch import report
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_callback, check_kind
from deq_kernels.solvers import Broyden, FixedPoint, Solution, Solver

DEFAULT_SOLVER = Broyden(max_steps=40, rtol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Implicit(AdjointGradient):
    """Solves w = Jᵀ w + ℓ with a fixed-point solver, one VJP per step.

    The gradient is exact up to the tolerance of both solves. The equation is linear: each sample is
    solved for ℓ scaled by a power of two to entries of about 1, which is exact and keeps the
    solver's squares in range however small or large the loss.

    It also has second derivatives, by two implicit solves more: one in J for w, and one in Jᵀ for
    z*. They reach the parameters of f and the tensors that the layer is called with; where f closes
    over another tensor that autograd computed outside of it, they raise, and so do third
    derivatives. A backward pass with create_graph evaluates f once more.

    A structured cell's equation is solved in one op where `solver` is a `FixedPoint`, or the
    default: then by the solver of the forward pass, and derivatives are of every order.

    Args:
        solver: solves for w, from ℓ. Its rtol is relative to ‖Jᵀw + ℓ‖₂, its atol absolute on the
            scaled equation. Any solver that takes values of the map alone: `GMRES` needs the fewest
            products, `LBFGS` a symmetric J, and `AdjointBroyden` is refused. It must leave
            `cuda_graph` out, as autograd runs the products with Jᵀ on the stream of the forward
            pass, which is not the one that a solver captures; and `compact`, as a recorded f gives
            products for all its samples.
        on_solve: called with the adjoint's `Solution` in every backward pass, for logging its
            status and steps, and with that of the equation in J where a second derivative is taken.
            What a layer does where samples did not converge is said by `DEQ(on_solve=...)`.

    Raises:
        TypeError: `solver` is no solver.
        ValueError: the solver has `cuda_graph` or `compact` set, or differentiates its map.
    """

    solver: Solver = DEFAULT_SOLVER
    on_solve: Callable[[Solution], None] | None = None

    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_kind("solver", self.solver, Solver, "dk.Broyden()")
        check_callback("on_solve", self.on_solve)
        if self.solver.cuda_graph:
            raise ValueError(
                "Implicit's solver must have cuda_graph=False: autograd runs the products with Jᵀ "
                "on the stream of the forward pass, which is not the one that a solver captures. "
                "The forward solver may have it."
            )
        if self.solver.compact:
            raise ValueError(
                "Implicit's solver must have compact=False: f is recorded once for all samples, "
                "and its products with Jᵀ cannot be taken for some of them. The forward solver may "
                "have it."
            )
        if self.solver.differentiates:
            raise ValueError(
                f"Implicit's solver must work with products Jᵀw alone; got "
                f"{type(self.solver).__name__}, whose steps differentiate the map that it solves. "
                "Use Broyden or GMRES. The forward solver may be one."
            )

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w with w = Jᵀ w + ℓ."""
        scale = scale_of(cotangent)
        scaled = cotangent / scale
        solution = self.solver(lambda w: vjp(w) + scaled, scaled, keep_inverse=False)
        if self.on_solve is not None:
            self.on_solve(solution)
        report(solution)
        assert isinstance(solution.z, Tensor)
        return solution.z * scale

    @property
    def takes_structured(self) -> bool:
        """Whether `solver` is the default, or takes structured cells itself."""
        if isinstance(self.solver, FixedPoint):
            return self.solver.takes_structured
        return self.solver == DEFAULT_SOLVER

    def structured_adjoint(self, cotangent: Tensor, jacobian: KnownJacobian) -> Tensor:
        """w with w = Jᵀ w + ℓ, with derivatives of every order.

        A solver of its own takes damped steps; the forward pass's looks back as it did there.
        """
        own = isinstance(self.solver, FixedPoint)
        solver = self.solver if isinstance(self.solver, FixedPoint) else jacobian.solver

        def tell(solution: Solution) -> None:
            if self.on_solve is not None:
                assert isinstance(solution.z, Tensor)
                # A copy, as the solution's own z goes on into autograd.
                self.on_solve(replace(solution, z=solution.z.clone()))
            jacobian.watch.solved(solution, "adjoint")

        linear = jacobian.transposed
        accelerate = jacobian.accelerate and not own
        system = LinearSystem(linear.pattern, solver, jacobian.norm, accelerate, tell)
        return system.solve(cotangent, linear.scale, linear.weight, linear.values)
