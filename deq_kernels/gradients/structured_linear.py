"""Linear equations in a known Jacobian solved, differentiable as often as wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deq_kernels.cells.iteration import LinearMap, iterate, without_autocast
from deq_kernels.cells.pattern import Pattern
from deq_kernels.cells.products import transposed_product, values_product, weight_product
from deq_kernels.gradients.scaling import scale_of
from deq_kernels.gradients.transforms import refuse_batched
from deq_kernels.ops.cells import NormKind
from deq_kernels.solvers import FixedPoint, Solution


@dataclass(frozen=True, slots=True)
class LinearSystem:
    """What of x = S (c ⊙ x) Vᵀ + b carries no gradient.

    Attributes:
        pattern: the places of S; None for the identity.
        solver: when x is good enough; its atol is that of the equation scaled to entries of b of
            about 1.
        norm: what its tolerances are of.
        accelerate: whether steps look back on those before.
        report: called with every solution, in the scaled equation.
    """

    pattern: Pattern | None
    solver: FixedPoint
    norm: NormKind
    accelerate: bool
    report: Callable[[Solution], None]

    @property
    def transposed(self) -> LinearSystem:
        """With Sᵀ."""
        pattern = self.pattern
        return replace(self, pattern=None if pattern is None else pattern.transposed)

    def transpose(self, values: Tensor | None) -> Tensor | None:
        """The values of Sᵀ from those of S."""
        if self.pattern is None or values is None:
            return None
        return self.pattern.transpose(values)

    def solve(
        self, bias: Tensor, scale: Tensor | None, weight: Tensor, values: Tensor | None
    ) -> Tensor:
        """x, [N, n], differentiable in all arguments."""
        result: Tensor = _LinearSolve.apply(bias, scale, weight, values, self)
        return result

    def iterate(self, linear: LinearMap, bias: Tensor) -> Tensor:
        """Solve the scaled equation, and tell of it; not differentiable."""
        solver = self.solver
        limits = solver.visible_limits(bias)
        x, tables = iterate(
            linear,
            bias,
            bias,
            limits=limits,
            damping=solver.damping,
            norm=self.norm,
            accelerate=self.accelerate,
        )
        self.report(Solution(x, tables, None, rtol=limits.rtol, atol=limits.atol))
        return x

    def scales(self, bias: Tensor) -> Tensor:
        """The power of two that each row's sample is divided by, [N, 1]."""
        if self.pattern is None:
            return scale_of(bias)
        graphs = self.pattern.graphs
        largest = bias.new_zeros(len(graphs))
        if bias.numel():
            largest.scatter_reduce_(0, graphs.of_row, bias.abs().amax(1), "amax")
        return scale_of(largest[:, None]).index_select(0, graphs.of_row)


class _LinearSolve(torch.autograd.Function):
    """x = S (c ⊙ x) Vᵀ + b.

    Backward, for a cotangent ẋ: y = ẋ + c ⊙ n with n = Sᵀ y V, that is n = Sᵀ (c ⊙ n) V + Sᵀ ẋ V,
    an equation of the same form. ∂b = y, ∂c = x ⊙ n, ∂V = yᵀ S (c ⊙ x), and ∂S at its places.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bias: Tensor,
        scale: Tensor | None,
        weight: Tensor,
        values: Tensor | None,
        system: LinearSystem,
    ) -> Tensor:
        scales = system.scales(bias)
        scaled = bias / scales
        x = system.iterate(LinearMap(weight, system.pattern, values, scale), scaled) * scales
        ctx.system = system
        ctx.save_for_backward(x, scale, weight, values)
        return x

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(cotangent)
        x, scale, weight, values = ctx.saved_tensors
        system: LinearSystem = ctx.system
        of_bias, of_scale, of_weight, of_values, _ = ctx.needs_input_grad
        with without_autocast(x):
            right_hand_side = transposed_product(cotangent, weight, system.pattern, values)
            n = system.transposed.solve(
                right_hand_side, scale, weight.t(), system.transpose(values)
            )
            y = cotangent + (n if scale is None else scale * n)
            scaled = x if scale is None else scale * x
            return (
                y if of_bias else None,
                x * n if of_scale else None,
                weight_product(y, scaled, system.pattern, values) if of_weight else None,
                values_product(y, weight, scaled, system.pattern) if of_values else None,
                None,
            )
