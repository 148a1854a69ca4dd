"""The one autograd function behind all estimators that solve for w."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deq_kernels.gradients.circumstances import Circumstances
from deq_kernels.gradients.dependencies import Dependencies, StateInput
from deq_kernels.gradients.second_derivatives import (
    Estimator,
    TwiceDifferentiable,
    WithInputs,
    refuse_derivative,
)
from deq_kernels.gradients.transforms import refuse_batched
from deq_kernels.gradients.watch import Watch
from deq_kernels.inverse import InverseJacobian


def attach_adjoint(
    estimator: Estimator,
    f: Callable[[Tensor], Tensor],
    z_star: Tensor,
    inverse: InverseJacobian | None,
    inputs: Sequence[Tensor] = (),
    with_inputs: WithInputs | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """z_star [B, d] with (∂f/∂θ)ᵀ w as its gradient, w by `estimator`; f is evaluated once.

    Args:
        estimator: finds w.
        f: the map of [B, d] to [B, d].
        z_star: the solution.
        inverse: the forward solver's estimate of (J − I)⁻¹, where it built one.
        inputs: tensors that f was given; see `LayerCall`.
        with_inputs: f with others in their place; None where there are none.
        watch: reports the solves; None: nothing does.
    """
    circumstances = Circumstances.now(z_star, watch)
    z_input = z_star.detach()
    twice = None
    if estimator.needs_vjp:
        z_input = StateInput.apply(z_input.requires_grad_())
        f_z = f(z_input)
        dependencies = Dependencies.of(f_z, z_input, inputs)
        if not dependencies.tensors:
            return z_star
        if not dependencies.reaches_z:
            circumstances.tell_of_detached_state(type(estimator).__name__)
        if estimator.exact:
            remake = (lambda _: f) if with_inputs is None else with_inputs
            twice = TwiceDifferentiable(
                estimator, remake, dependencies, z_star.device.type, circumstances
            )
    else:
        f_z = f(z_input)
        if not f_z.requires_grad:
            return z_star
    tensors: tuple[Tensor, ...] = ()
    rebuild: Callable[..., InverseJacobian] | None = None
    if estimator.needs_inverse and inverse is not None:
        tensors, rebuild = inverse.unbind()
    known = () if twice is None else twice.tensors
    output: Tensor = _AdjointFunction.apply(
        f_z, z_star, z_input, estimator, circumstances, twice, rebuild, len(known), *known, *tensors
    )
    return output


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
        estimator: Estimator,
        circumstances: Circumstances,
        twice: TwiceDifferentiable | None,
        rebuild: Callable[..., InverseJacobian] | None,
        known: int,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.estimator = estimator
        ctx.circumstances = circumstances
        ctx.twice = twice
        ctx.rebuild = rebuild
        ctx.known = known
        output = z_star.detach()
        ctx.save_for_backward(_carrier(f_z, z_input), f_z, z_input, output, *tensors[known:])
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        carried, f_z, z_input, output, *inverse_tensors = ctx.saved_tensors
        # Those saved by themselves serve where hooks made the carrier anew.
        f_z, z_input = getattr(carried, "recording", (f_z, z_input))
        inverse = None if ctx.rebuild is None else ctx.rebuild(*inverse_tensors)
        if ctx.estimator.needs_vjp:
            refuse_batched(cotangent)
        for_known: Sequence[Tensor | None] = (None,) * ctx.known

        def vjp(w: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(
                f_z, z_input, w, retain_graph=True, materialize_grads=True
            )
            return product

        with torch.no_grad(), ctx.circumstances.solving("adjoint"):
            w = ctx.estimator.adjoint(cotangent, vjp, inverse)
        if torch.is_grad_enabled():  # the caller asked for create_graph
            again: tuple[Tensor | None, ...] | str = _refusal(ctx.estimator)
            if ctx.twice is not None:
                again = ctx.twice.gradients(w, cotangent, output, f_z)
            if isinstance(again, str):
                w = refuse_derivative(w, again, cotangent, f_z)
            else:
                w, for_known = None, again
        for_inverse = (None,) * len(inverse_tensors)
        return w, None, None, None, None, None, None, None, *for_known, *for_inverse


def _carrier(f_z: Tensor, z_input: Tensor) -> Tensor:
    """An empty tensor that carries f(z) and z, with the graph between them, to be saved.

    A checkpoint around the layer drops what the forward pass saves, and computes all of it anew
    once the backward pass asks for it. On the graph of the forward pass it would do so for every
    product with Jᵀ, the solve included, since each product is a backward pass of its own. So the
    graph itself is an attribute of a saved tensor: what a checkpoint hands back is then the tensor
    of its own forward pass, with a graph that has all its values.
    """
    empty = torch.empty(0, device="cpu")
    empty.recording = (f_z, z_input)  # type: ignore[attr-defined]  # tensors take attributes
    return empty


def _refusal(estimator: Estimator) -> str:
    return (
        f"{type(estimator).__name__} gives first derivatives only, but its result was "
        "differentiated again. Detach the first gradient, or use Implicit, or Unrolled."
    )
