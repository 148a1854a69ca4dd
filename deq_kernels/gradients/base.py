"""What a gradient estimator is, and the one autograd function behind all that solve for w.

At a fixed point z* = f(z*, θ) with J = ∂f/∂z and ℓ = ∂L/∂z*, the parameter gradient is
(∂f/∂θ)ᵀ w where w solves w = Jᵀ w + ℓ. Estimators differ in how they find w, or (`Unrolled`)
differentiate another expression altogether.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from deq_kernels.inverse import InverseJacobian

FlatMap = Callable[[Tensor], Tensor]
"""f as a map of [B, d] to [B, d], recorded by autograd."""

VectorJacobianProduct = Callable[[Tensor], Tensor]
"""w ↦ Jᵀw at the fixed point, [B, d] to [B, d]."""


class Gradient(ABC):
    """A way to attach a gradient to the solution of z = f(z)."""

    needs_inverse: ClassVar[bool] = False
    """Whether the forward solver must leave an inverse Jacobian estimate."""

    @abstractmethod
    def attach(self, f: FlatMap, z_star: Tensor, inverse: InverseJacobian | None) -> Tensor:
        """z_star [B, d] as a tensor whose backward reaches the parameters and inputs of f.

        Args:
            f: the map, evaluated under autograd here.
            z_star: the solution, detached.
            inverse: the forward solver's estimate of (J − I)⁻¹, where it built one.
        """


class AdjointGradient(Gradient):
    """A gradient (∂f/∂θ)ᵀ w whose w is found in the backward pass."""

    needs_vjp: ClassVar[bool] = True
    """Whether `adjoint` multiplies with Jᵀ; without it f is recorded for its parameters only."""

    @abstractmethod
    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """w from ℓ = cotangent, both [B, d]."""

    def attach(self, f: FlatMap, z_star: Tensor, inverse: InverseJacobian | None) -> Tensor:
        """The solver's z_star, with (∂f/∂θ)ᵀ w as its gradient; f is evaluated once."""
        z_input = z_star.detach()
        if self.needs_vjp:
            leaf = z_input.requires_grad_()
            z_input = _Input.apply(leaf)
        f_z = f(z_input)
        if not (_depends_beyond(f_z, leaf) if self.needs_vjp else f_z.requires_grad):
            return z_star.clone()
        tensors: tuple[Tensor, ...] = ()
        rebuild: Callable[..., InverseJacobian] | None = None
        if self.needs_inverse and inverse is not None:
            tensors, rebuild = inverse.unbind()
        output: Tensor = _AdjointFunction.apply(f_z, z_star, z_input, self, rebuild, *tensors)
        return output


class _Input(torch.autograd.Function):
    """The z at which f is recorded: products with Jᵀ end here, and so does the backward pass.

    Without it the backward pass of the loss would leave Jᵀw behind as the gradient of a leaf.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        return None


def _depends_beyond(output: Tensor, leaf: Tensor) -> bool:
    """Whether autograd leads from `output` to anything but `leaf`."""
    pending, seen = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and variable is not leaf:
            return True
        pending.extend(next_node for next_node, _ in node.next_functions)
    return False


class _AdjointFunction(torch.autograd.Function):
    """Identity on z_star whose backward hands w to f(z_star) instead of ℓ.

    Everything large that the backward pass needs is a saved tensor, so autograd frees it after use
    and reports a second use like for any other op.
    """

    @staticmethod
    def forward(
        ctx: Any,
        f_z: Tensor,
        z_star: Tensor,
        z_input: Tensor,
        gradient: AdjointGradient,
        rebuild: Callable[..., InverseJacobian] | None,
        *inverse_tensors: Tensor,
    ) -> Tensor:
        ctx.gradient = gradient
        ctx.rebuild = rebuild
        ctx.save_for_backward(f_z, z_input, *inverse_tensors)
        # A copy, so that the caller may change the output in place.
        return z_star.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        f_z, z_input, *inverse_tensors = ctx.saved_tensors
        inverse = None if ctx.rebuild is None else ctx.rebuild(*inverse_tensors)

        def vjp(w: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(
                f_z, z_input, w, retain_graph=True, materialize_grads=True
            )
            return product

        with torch.no_grad():
            w = ctx.gradient.adjoint(cotangent, vjp, inverse)
        if torch.is_grad_enabled():  # the caller asked for create_graph
            w = _NoSecondDerivative.apply(w, type(ctx.gradient).__name__, cotangent, f_z)
        return w, None, None, None, None, *(None for _ in inverse_tensors)


class _NoSecondDerivative(torch.autograd.Function):
    """Identity on w that raises when differentiated.

    w depends on ℓ and on everything f depends on. Treating it as a constant would make second
    derivatives wrong without a word.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, name: str, *depends_on: Tensor) -> Tensor:
        ctx.name = name
        return w.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            f"{ctx.name} gives first derivatives only, but its result was differentiated again. "
            "Detach the first gradient, or use Unrolled, through which autograd differentiates "
            "as often as asked."
        )
