"""z = φ(S z Vᵀ + b) solved and differentiated: what the dense and the graph cell share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deq_kernels.cells.activations import slope
from deq_kernels.cells.estimators import Estimator
from deq_kernels.cells.iteration import LinearMap, Stopping, iterate, step_from, without_autocast
from deq_kernels.cells.pattern import Pattern
from deq_kernels.cells.products import affine, values_product, weight_product
from deq_kernels.cells.unrolled import unroll
from deq_kernels.gradients import Unrolled, refuse_tangents, refuse_transforms
from deq_kernels.gradients.transforms import refuse_batched
from deq_kernels.gradients.watch import Watch
from deq_kernels.ops.cells import Activation
from deq_kernels.ops.dtypes import check_state_dtype
from deq_kernels.solvers.machinery.unsupported import refuse_meta, refuse_trace


@dataclass(frozen=True, slots=True)
class Problem:
    """What of a solve carries no gradient.

    Attributes:
        pattern: the places of S; None for the identity, where each row is a sample.
        activation: φ.
        stopping: when a sample stops.
        start: z0, [N, n]; None for zeros.
        estimator: finds w in the backward pass, or says what autograd records.
        watch: told of the solution.
    """

    pattern: Pattern | None
    activation: Activation
    stopping: Stopping
    start: Tensor | None
    estimator: Estimator
    watch: Watch

    def solve(self, bias: Tensor, weight: Tensor, values: Tensor | None) -> Tensor:
        """The solution, [N, n], with its gradient; checks nothing but how that is taken.

        f of the best iterate; with `Unrolled` the last of its states, or that iterate itself.
        """
        refuse_meta(bias.device)
        refuse_trace()
        refuse_transforms()
        refuse_tangents(tuple(x for x in (bias, weight, values) if x is not None))
        if isinstance(self.estimator, Unrolled):
            with torch.no_grad():
                z = self.iterate(LinearMap(weight, self.pattern, values), bias)
            if not torch.is_grad_enabled():
                return z
            with without_autocast(z):
                return unroll(
                    self.estimator, self.activation, z, weight, self.pattern, values, bias
                )
        y: Tensor = _Solve.apply(bias, weight, values, self)
        # A copy, so that the caller may change the output in place.
        return y.clone() if y.requires_grad else y

    def iterate(self, linear: LinearMap, bias: Tensor) -> Tensor:
        """The best iterate, [N, n], after telling of it; not differentiable."""
        solution = iterate(
            linear, bias, self.start, activation=self.activation, stopping=self.stopping
        )
        self.watch.solved(solution, "forward")
        assert isinstance(solution.z, Tensor)
        return solution.z


class _Solve(torch.autograd.Function):
    """y = φ(S z Vᵀ + b), of the solution z = φ(S z Vᵀ + b).

    Of z itself no φ' is known that would be certain to belong to it: where a solve ends early, a
    row that nothing has reached yet is exactly zero, where a loss may have any gradient, while f of
    it is not, and relu has another slope there. What y and its slopes have in common is the place
    where they were taken.

    Backward, for a cotangent ℓ: w = ℓ + Jᵀ w with Jᵀ w = Sᵀ (φ' ⊙ w) V; then with g = φ' ⊙ w:
    ∂b = g, ∂V = gᵀ S y, and ∂S at its places. All of it is made of functions that can be
    differentiated again, and so can y, which they are taken at.
    """

    @staticmethod
    def forward(
        ctx: Any, bias: Tensor, weight: Tensor, values: Tensor | None, problem: Problem
    ) -> Tensor:
        linear = LinearMap(weight, problem.pattern, values)
        z = problem.iterate(linear, bias)
        y = step_from(z, linear, bias, problem.activation)
        # The start is not needed again, and may be large.
        ctx.pattern, ctx.activation = problem.pattern, problem.activation
        ctx.adjoint = problem.estimator
        ctx.save_for_backward(y, bias, weight, values)
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(cotangent)
        y, bias, weight, values = ctx.saved_tensors
        pattern: Pattern | None = ctx.pattern
        of_bias, of_weight, of_values, _ = ctx.needs_input_grad
        with without_autocast(y):
            scale = None
            if ctx.activation == Activation.RELU:
                # Its values tell its slopes, which are those where y was made.
                scale = slope(ctx.activation, y)
            elif ctx.activation != Activation.IDENTITY:
                # Those of others do not jump: a step further they are the same up to the residual.
                scale = slope(ctx.activation, affine(y, weight, pattern, values, bias))
            transposed = LinearMap(weight.t(), scale=scale)
            if pattern is not None:
                transposed = LinearMap(
                    weight.t(), pattern.transposed, pattern.transpose(values), scale
                )
            w = ctx.adjoint(cotangent, transposed)
            g = w if scale is None else scale * w
            return (
                g if of_bias else None,
                weight_product(g, y, pattern, values) if of_weight else None,
                values_product(g, weight, y, pattern) if of_values else None,
                None,
            )


def check_state(name: str, bias: Tensor, weight: Tensor) -> None:
    """Raise unless bias [N, n] and weight [n, n] are tensors of one state's dtype and device."""
    for label, tensor in ((name, bias), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{label} must be a tensor; got {type(tensor).__name__}.")
    check_state_dtype(bias.dtype)
    if bias.ndim != 2 or bias.shape[1] == 0:
        raise ValueError(
            f"{name} must be [rows, n], n at least 1; got {list(bias.shape)}. Flatten other "
            "dimensions into rows."
        )
    size = bias.shape[1]
    if weight.shape != (size, size):
        raise ValueError(
            f"weight must be [n, n] for a {name} of [rows, n], [{size}, {size}]; got "
            f"{list(weight.shape)}."
        )
    check_like("weight", weight, name, bias)


def check_like(label: str, tensor: Tensor, name: str, bias: Tensor) -> None:
    """Raise TypeError unless a tensor has the dtype and device of the bias."""
    if tensor.dtype != bias.dtype or tensor.device != bias.device:
        raise TypeError(
            f"{label} must have the dtype and device of {name}, {bias.dtype} on {bias.device}; got "
            f"{tensor.dtype} on {tensor.device}. Convert one of them."
        )


def start_of(z0: Tensor | None, name: str, bias: Tensor) -> Tensor | None:
    """z0, checked and detached, or None."""
    if z0 is None:
        return None
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 must be None or a tensor; got {type(z0).__name__}.")
    if z0.shape != bias.shape:
        raise ValueError(
            f"z0 must have the shape of {name}, {list(bias.shape)}; got {list(z0.shape)}."
        )
    check_like("z0", z0, name, bias)
    refuse_tangents(z0)
    return z0.detach()
