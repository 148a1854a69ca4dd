"""A structured cell with everything that it depends on: the map f of one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from deq_kernels.cells.iteration import LinearMap, iterate, take_steps, without_autocast
from deq_kernels.cells.pattern import Graphs, Pattern
from deq_kernels.cells.products import affine
from deq_kernels.ops.cells import Activation, NormKind, slope, value
from deq_kernels.ops.limits import Limits
from deq_kernels.ops.termination import Tables

Form: TypeAlias = tuple[Pattern | None, Activation, NormKind, bool]
"""The places of S, φ, the norm of tolerances and whether steps look back: see `StructuredMap`."""


@dataclass(frozen=True, slots=True)
class StructuredMap:
    """f(z) = φ(S z Vᵀ + b) on states z [N, n]: an ordinary, differentiable f that knows its form.

    A sample is a row, or with S the rows of a graph.

    Attributes:
        bias: b, [N, n].
        weight: V, [n, n].
        values: of S, [nnz], in the order of `pattern.rows`; None without S.
        pattern: the places of S; None for the identity.
        activation: φ.
        norm: what tolerances of a solve of it are of.
        accelerate: whether the steps of its fixed-point iteration look back on those before.
    """

    bias: Tensor
    weight: Tensor
    values: Tensor | None
    pattern: Pattern | None
    activation: Activation
    norm: NormKind
    accelerate: bool

    def __call__(self, z: Tensor) -> Tensor:
        """f(z), [N, n], differentiable in everything."""
        with without_autocast(z):
            x = affine(z, self.weight, self.pattern, self.values, self.bias)
            return value(self.activation, x)

    @property
    def graphs(self) -> Graphs | None:
        """Which rows are one sample; None where each row is one."""
        return None if self.pattern is None else self.pattern.graphs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it can be differentiated in: b, V and, with S, its values."""
        some = (self.bias, self.weight, self.values)
        return tuple(tensor for tensor in some if tensor is not None)

    @property
    def form(self) -> Form:
        """What of it is no tensor that a gradient goes to."""
        return self.pattern, self.activation, self.norm, self.accelerate

    @classmethod
    def of(
        cls, form: Form, bias: Tensor, weight: Tensor, values: Tensor | None = None
    ) -> StructuredMap:
        """A map of that form, with these tensors."""
        return cls(bias, weight, values, *form)

    def evaluate(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """f(z) with other numbers, `tensors` in the order of the property."""
        return StructuredMap.of(self.form, *tensors)(z)

    @property
    def _linear(self) -> LinearMap:
        return LinearMap(self.weight, self.pattern, self.values)

    def iterate(self, start: Tensor, limits: Limits, damping: float) -> tuple[Tensor, Tables]:
        """All steps of the fixed-point iteration in one op, without autograd; see `iterate`."""
        return iterate(
            self._linear,
            self.bias,
            start,
            limits=limits,
            damping=damping,
            activation=self.activation,
            norm=self.norm,
            accelerate=self.accelerate,
        )

    def step(self, z: Tensor) -> Tensor:
        """f(z), [N, n], as the iteration computes it; without autograd."""
        return take_steps(self._linear, self.bias, z, activation=self.activation)

    def transposed_jacobian(self, f_z: Tensor) -> LinearMap:
        """w ↦ Jᵀ w = Sᵀ (φ' ⊙ w) V, whose c is φ'; differentiable.

        Args:
            f_z: y = f(z), [N, n], at which φ' is taken: relu's values tell its slopes at z; those
                of others do not jump, and are taken a step further on.
        """
        scale = None
        if self.activation == Activation.RELU:
            scale = slope(self.activation, f_z)
        elif self.activation != Activation.IDENTITY:
            x = affine(f_z, self.weight, self.pattern, self.values, self.bias)
            scale = slope(self.activation, x)
        if self.pattern is None or self.values is None:
            return LinearMap(self.weight.t(), scale=scale)
        values = self.pattern.transpose(self.values)
        return LinearMap(self.weight.t(), self.pattern.transposed, values, scale)
