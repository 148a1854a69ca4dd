"""What a gradient estimator is.

At a fixed point z* = f(z*, θ) with J = ∂f/∂z and ℓ = ∂L/∂z*, the parameter gradient is
(∂f/∂θ)ᵀ w where w solves w = Jᵀ w + ℓ. Estimators differ in how they find w, or (`Unrolled`)
differentiate another expression altogether.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deq_kernels.cells.map import StructuredMap
from deq_kernels.gradients.adjoint_function import attach_adjoint
from deq_kernels.gradients.second_derivatives import VectorJacobianProduct, WithInputs
from deq_kernels.gradients.structured import KnownJacobian, attach_structured
from deq_kernels.gradients.watch import Watch
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import Options
from deq_kernels.solvers import FixedPoint, State

FlatMap = Callable[[Tensor], Tensor]
"""f as a map of [B, d] to [B, d], recorded by autograd."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a gradient may want to know of the call that it serves.

    Attributes:
        inputs: the tensors that the cell was given. Second derivatives reach tensors that autograd
            computed outside of f only through these; parameters are found without them.
        with_inputs: the map f with other tensors in the place of some of `inputs`; None where
            there are none.
        separate: [B, d] as the state that the user knows, in memory of its own.
        watch: reports the solves; None: nothing does.
    """

    inputs: tuple[Tensor, ...] = ()
    with_inputs: WithInputs | None = None
    separate: Callable[[Tensor], State] = Tensor.clone
    watch: Watch | None = None


BARE_CALL = LayerCall()
"""No layer: f is all there is."""


class Gradient(Options, ABC):
    """A way to attach a gradient to the solution of z = f(z)."""

    needs_inverse: ClassVar[bool] = False
    """Whether the forward solver must leave an inverse Jacobian estimate."""

    unrolls: ClassVar[bool] = False
    """Whether a state after z* is returned, instead of z*."""

    @property
    def takes_structured(self) -> bool:
        """Whether `attach_structured` passes the solve of a structured cell."""
        return False

    def attach_structured(
        self, f: StructuredMap, z_star: Tensor, solver: FixedPoint, watch: Watch
    ) -> Tensor:
        """What a layer returns of a structured cell's solution, [N, n], with its gradient.

        Args:
            f: the map.
            z_star: the best iterate, detached.
            solver: what found it.
            watch: receives the solves; see `DEQ(on_solve=...)`.
        """
        raise NotImplementedError

    @abstractmethod
    def attach(
        self,
        f: FlatMap,
        z_star: Tensor,
        inverse: InverseJacobian | None,
        call: LayerCall = BARE_CALL,
    ) -> Tensor:
        """z_star [B, d] as a tensor whose backward reaches the parameters and inputs of f.

        The backward pass may need what is returned as it is: hand out a copy.

        Args:
            f: the map, evaluated under autograd here.
            z_star: the solution, detached.
            inverse: the forward solver's estimate of (J − I)⁻¹, where it built one.
            call: what else is known of the layer's call.
        """


class AdjointGradient(Gradient):
    """A gradient (∂f/∂θ)ᵀ w whose w is found in the backward pass."""

    exact: ClassVar[bool] = False
    """Whether w solves w = Jᵀ w + ℓ, so that differentiating that equation differentiates w."""

    @property
    def needs_vjp(self) -> bool:
        """Whether `adjoint` multiplies with Jᵀ; else f is recorded for its parameters only."""
        return True

    @abstractmethod
    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w from ℓ = cotangent, both [B, d]."""

    def structured_adjoint(self, cotangent: Tensor, jacobian: KnownJacobian) -> Tensor:
        """w from ℓ, [N, n], for a cell whose J is known: differentiable, or refuses to be."""
        raise NotImplementedError

    def attach_structured(
        self, f: StructuredMap, z_star: Tensor, solver: FixedPoint, watch: Watch
    ) -> Tensor:
        """f(z*), with the gradient of `structured_adjoint`."""
        return attach_structured(self, f, z_star, solver, watch)

    def attach(
        self,
        f: FlatMap,
        z_star: Tensor,
        inverse: InverseJacobian | None,
        call: LayerCall = BARE_CALL,
    ) -> Tensor:
        """The solver's z_star, with (∂f/∂θ)ᵀ w as its gradient; f is evaluated once."""
        return attach_adjoint(self, f, z_star, inverse, call.inputs, call.with_inputs, call.watch)
