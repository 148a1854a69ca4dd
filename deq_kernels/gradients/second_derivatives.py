"""Second derivatives of an implicit layer, by the implicit function theorem once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Protocol

import torch
from torch import Tensor

from deq_kernels.gradients.circumstances import Circumstances
from deq_kernels.gradients.dependencies import Dependencies
from deq_kernels.inverse import InverseJacobian

VectorJacobianProduct = Callable[[Tensor], Tensor]
"""w ↦ Jᵀw at the fixed point, [B, d] to [B, d]."""

WithInputs = Callable[[Mapping[Tensor, Tensor]], Callable[[Tensor], Tensor]]
"""f as a map of [B, d] to [B, d], with other tensors in the place of those it was given."""


class Estimator(Protocol):
    """What the autograd functions need of an `AdjointGradient`."""

    needs_inverse: ClassVar[bool]
    exact: ClassVar[bool]

    @property
    def needs_vjp(self) -> bool:
        """See `AdjointGradient`."""
        ...

    def adjoint(
        self, cotangent: Tensor, vjp: VectorJacobianProduct, inverse: InverseJacobian | None
    ) -> Tensor:
        """See `AdjointGradient`."""
        ...


class TwiceDifferentiable:
    """(∂f/∂θ)ᵀ w as an expression that autograd can differentiate once more.

    Args:
        estimator: solves w = Jᵀw + ℓ, and equations in J just as well.
        with_inputs: makes f anew.
        dependencies: θ, all that f(z) depends on besides z, and the graph of f(z).
        device_type: where the state lives.
        circumstances: how f was recorded.
    """

    def __init__(
        self,
        estimator: Estimator,
        with_inputs: WithInputs,
        dependencies: Dependencies,
        device_type: str,
        circumstances: Circumstances,
    ) -> None:
        self.tensors = dependencies.tensors
        self._nodes = dependencies.nodes
        self._estimator = estimator
        self._with_inputs = with_inputs
        self._device_type = device_type
        self._circumstances = circumstances
        self._cast = torch.is_autocast_enabled(device_type)
        self._cast_dtype = torch.get_autocast_dtype(device_type)

    def gradients(
        self, w: Tensor, cotangent: Tensor, z_star: Tensor, f_before: Tensor
    ) -> tuple[Tensor | None, ...] | str:
        """(∂f/∂θ)ᵀ w for each of `tensors`, or in words why it cannot be differentiated.

        Args:
            w: solves w = Jᵀw + ℓ, [B, d], detached.
            cotangent: ℓ.
            z_star: the layer's output.
            f_before: f(z_star) as the forward pass had it.

        Raises:
            RuntimeError: f is not what it was in the forward pass.
        """
        name = type(self._estimator).__name__
        for tensor in self.tensors:
            if tensor.layout not in (torch.strided, torch.sparse_coo):
                return (
                    f"{name} was differentiated again, but f depends on a tensor with the layout "
                    f"{tensor.layout}, whose gradients torch cannot differentiate. Use "
                    "torch.sparse_coo or a dense tensor."
                )
        # f is evaluated anew, on leaves: what is behind them (z* depends on θ, and an input may)
        # is differentiated by autograd outside.
        inner = {t: _leaf(t) for t in self.tensors if t.grad_fn is not None}
        leaves = tuple(inner.get(tensor, tensor) for tensor in self.tensors)
        z, w = _leaf(z_star), _leaf(w)
        f_z = self._evaluate(inner, z)
        _check_unchanged(f_z, f_before)
        # An operation that is in both graphs made a tensor outside of f, which f closes over. One
        # that was closed over then and is computed by f now, such as a normalised weight, is fine.
        now = Dependencies.of(f_z, z, ())
        if not now.nodes.isdisjoint(self._nodes):
            return (
                f"{name} was differentiated again, but f reads a tensor that autograd computed "
                "outside of f, or in an earlier evaluation of f, and which it was not given. Pass "
                "such tensors to the layer as arguments, layer(z0, x), compute them in each "
                "evaluation of the cell, or use Unrolled."
            )
        if set(now.tensors) != set(leaves) and not self._differ_in_own(leaves, now, inner, z):
            return (
                f"{name} was differentiated again, but f, evaluated again for that, depends on "
                "other leaves than in the forward pass: parameters have been replaced since then, "
                "as torch.func.functional_call does when it returns, or what f reads is computed "
                "without autograd by now. Pass it to the layer as an argument, layer(z0, x), or "
                "use Unrolled."
            )
        product, *gradients = torch.autograd.grad(
            f_z, (z, *leaves), w, create_graph=True, allow_unused=True
        )
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        recorded = _Recorded(
            self._estimator,
            self._circumstances,
            z,
            w,
            leaves,
            product,
            tuple(gradients[index] for index in used),
        )
        outputs = _SecondDerivative.apply(recorded, z_star, cotangent, *self.tensors)
        attached = dict(zip(used, outputs, strict=True))
        return tuple(attached.get(index) for index in range(len(gradients)))

    def _evaluate(self, inner: Mapping[Tensor, Tensor], z: Tensor) -> Tensor:
        """f(z) with the inputs in `inner` replaced, as the forward pass would compute it."""
        with torch.autocast(
            self._device_type, self._cast_dtype, enabled=self._cast, cache_enabled=False
        ):
            return self._with_inputs(inner)(z)

    def _differ_in_own(
        self,
        leaves: Sequence[Tensor],
        now: Dependencies,
        inner: Mapping[Tensor, Tensor],
        z: Tensor,
    ) -> bool:
        """Whether f depends on `leaves`, but for those that every evaluation of f makes anew.

        Leaves that f makes itself, for a gradient within it, no other gradient can reach.
        """
        lasting = set(now.tensors)
        lasting &= set(Dependencies.of(self._evaluate(inner, z), z, ()).tensors)
        return lasting <= set(leaves) and len(now.tensors) == len(leaves)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """(∂f/∂θ)ᵀ w and Jᵀ w with their graphs, which end at leaves.

    Attributes:
        estimator: what w came from.
        circumstances: how f was recorded.
        z: the solution, a leaf.
        w: a leaf.
        leaves: θ, in the order of `TwiceDifferentiable.tensors`.
        product: Jᵀ w; None where f does not depend on z.
        gradients: (∂f/∂θ)ᵀ w, for those leaves where there is one.
    """

    estimator: Estimator
    circumstances: Circumstances
    z: Tensor
    w: Tensor
    leaves: tuple[Tensor, ...]
    product: Tensor | None
    gradients: tuple[Tensor, ...]


class _SecondDerivative(torch.autograd.Function):
    """The gradients g(z*, w, θ) = (∂f/∂θ)ᵀ w, where w(z*, ℓ, θ) solves w = Jᵀw + ℓ.

    Backward, with c for the cotangents of g: (ċz, ċw, ċθ) = cᵀ∂g/∂(z, w, θ); μ = J μ + ċw, which
    is the cotangent of ℓ; and z and θ get μᵀ∂(Jᵀw)/∂(z, θ) on top.
    """

    @staticmethod
    def forward(
        ctx: Any, recorded: _Recorded, z_star: Tensor, cotangent: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.save_for_backward(z_star, cotangent, *tensors)
        return tuple(gradient.detach() for gradient in recorded.gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        recorded: _Recorded = ctx.recorded
        points = (recorded.z, recorded.w, *recorded.leaves)
        of_z, of_w, *of_leaves = _vjp(recorded.gradients, points, cotangents)
        mu = torch.zeros_like(recorded.w) if of_w is None else of_w
        product = recorded.product
        if product is not None and product.requires_grad:

            def jvp(v: Tensor) -> Tensor:
                (jacobian_v,) = torch.autograd.grad(
                    product, recorded.w, v, retain_graph=True, materialize_grads=True
                )
                return jacobian_v

            with torch.no_grad(), recorded.circumstances.solving("tangent"):
                mu = recorded.estimator.adjoint(mu, jvp, None)
            points = (recorded.z, *recorded.leaves)
            more_of_z, *more_of_leaves = _vjp((product,), points, (mu,))
            of_z = _sum(of_z, more_of_z)
            of_leaves = [_sum(*pair) for pair in zip(of_leaves, more_of_leaves, strict=True)]
        results = (of_z, mu, *of_leaves)
        if torch.is_grad_enabled():
            refusal = (
                f"{type(recorded.estimator).__name__} gives first and second derivatives, but its "
                "second derivative was differentiated again. Detach it, or use Unrolled."
            )
            depends_on = (*ctx.saved_tensors, *cotangents)
            results = tuple(
                None if result is None else refuse_derivative(result, refusal, *depends_on)
                for result in results
            )
        return None, *results


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _vjp(
    outputs: tuple[Tensor, ...], points: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The products of `cotangents` with the derivatives of `outputs`; None where there is none."""
    recorded = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not recorded:
        return (None,) * len(points)
    return torch.autograd.grad(
        [outputs[index] for index in recorded],
        points,
        [cotangents[index] for index in recorded],
        retain_graph=True,
        allow_unused=True,
    )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    # torch adds sparse tensors to dense ones, but not the other way round.
    return other + one if one.is_sparse else one + other


def _check_unchanged(f_z: Tensor, f_before: Tensor) -> None:
    tolerance = torch.finfo(f_z.dtype).eps ** 0.5
    with torch.no_grad():
        scale = f_before.abs().amax().item() if f_before.numel() else 0.0
        same = torch.allclose(f_z, f_before, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    if not same:
        raise RuntimeError(
            "Second derivatives evaluate f again in the backward pass, and it must be the map that "
            "was solved, but it has changed since: a mask resampled, a buffer or a parameter "
            "changed in place. Take the gradient before anything of the cell changes."
        )


def refuse_derivative(value: Tensor, refusal: str, *depends_on: Tensor) -> Tensor:
    """`value` as a tensor that raises NotImplementedError when it is differentiated.

    It depends on `depends_on`; treating it as a constant would make derivatives wrong without a
    word.
    """
    refused: Tensor = _NoDerivative.apply(value, refusal, *depends_on)
    return refused


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, refusal: str, *depends_on: Tensor) -> Tensor:
        ctx.refusal = refusal
        return value.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> NoReturn:
        raise NotImplementedError(ctx.refusal)
