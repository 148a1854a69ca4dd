"""What a structured cell is: a module that can tell its map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from deq_kernels.cells.map import StructuredMap
from deq_kernels.ops.cells import NAMES, Activation, NormKind
from deq_kernels.ops.dtypes import check_state_dtype
from deq_kernels.options import check_choice, check_flag

NORMS = {"rows": NormKind.ROWS, "l2": NormKind.TWO, "max": NormKind.MAX}


class StructuredCell(nn.Module, ABC):
    """A cell f(z) = φ(S z Wᵀ + b) whose Jacobian is known.

    As the cell of a `deq_kernels.DEQ` it is solved in one op where the solver is a `FixedPoint`
    and the gradient Implicit (by its default solver, or a `FixedPoint`), Neumann, Unrolled or
    JacobianFree; and step by step, as any other cell, where they are others.

    Args:
        weight: W, [n, n]: a parameter, which the module then owns, or a tensor; None where every
            call gives one.
        activation: φ, the name of an `deq_kernels.ops.cells.Activation` in small letters.
        norm: what tolerances are of, where the solve is one op: "l2" or "max" (the largest
            magnitude) of all elements of a sample, or "rows", of each row for itself.
        accelerate: let each step of `FixedPoint` look back on the two before, by conjugate
            residuals (CROP: Ziolkowski et al. 2008; `deq_kernels.ops.cells.iterate_`), where the
            solve is one op. Where ∂f/∂z is symmetric and f nearly linear, that takes about the
            square root of the number of steps; elsewhere mostly fewer, too. A step that does not
            lower the residual is taken back, and the iterate before evaluated again. False: the
            damped iteration alone.
        one_op: False: never solve in one op.

    Raises:
        TypeError: weight is no tensor, or a flag no bool.
        ValueError: an option is none of its choices.
    """

    def __init__(
        self,
        weight: Tensor | None,
        *,
        activation: str,
        norm: str,
        accelerate: bool,
        one_op: bool,
    ) -> None:
        super().__init__()
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"weight must be a tensor or None; got {type(weight).__name__}.")
        check_choice("activation", activation, NAMES)
        check_choice("norm", norm, NORMS)
        check_flag("accelerate", accelerate)
        check_flag("one_op", one_op)
        self.weight = weight
        self.activation = activation
        self.norm = norm
        self.accelerate = accelerate
        self.one_op = one_op

    @abstractmethod
    def bind(self, *args: Any, **kwargs: Any) -> StructuredMap:
        """The map f of one call, from what the cell is called with after z."""

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """f(z), [N, n], differentiable; arguments after z: see `bind`."""
        f = self.bind(*args, **kwargs)
        return f(check_start(z, f))

    def extra_repr(self) -> str:
        """For print(module)."""
        return f"activation={self.activation!r}, norm={self.norm!r}, accelerate={self.accelerate}"

    def _weight(self, given: Tensor | None) -> Tensor:
        weight = self.weight if given is None else given
        if weight is None:
            raise ValueError(
                f"{type(self).__name__} was made without a weight, so each call must give one; got "
                "none. Pass layer(z0, b, weight=...)."
            )
        return weight

    def _map(self, bias: Tensor, weight: Tensor, **structure: Any) -> StructuredMap:
        return StructuredMap(
            bias,
            weight,
            activation=Activation[self.activation.upper()],
            norm=NORMS[self.norm],
            accelerate=self.accelerate,
            **structure,
        )


def check_start(z: object, f: StructuredMap) -> Tensor:
    """The state z; raises unless it has the form of f's bias: [N, n], dtype and device."""
    if not isinstance(z, Tensor):
        raise TypeError(
            f"A structured cell's state must be a tensor [rows, n]; got {type(z).__name__}."
        )
    if z.shape != f.bias.shape:
        raise ValueError(
            f"A structured cell's state must have the shape of b, {list(f.bias.shape)}; got "
            f"{list(z.shape)}."
        )
    check_like("z", z, f.bias)
    return z


def check_tensors(bias: Tensor, weight: Tensor) -> None:
    """Raise unless bias [N, n] and weight [n, n] are tensors of one state's dtype and device."""
    for label, tensor in (("b", bias), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{label} must be a tensor; got {type(tensor).__name__}.")
    check_state_dtype(bias.dtype)
    if bias.ndim != 2 or bias.shape[1] == 0:
        raise ValueError(
            f"b must be [rows, n], n at least 1; got {list(bias.shape)}. Flatten other "
            "dimensions into rows."
        )
    size = bias.shape[1]
    if weight.shape != (size, size):
        raise ValueError(
            f"weight must be [n, n] for a b of [rows, n], [{size}, {size}]; got "
            f"{list(weight.shape)}."
        )
    check_like("weight", weight, bias)


def check_like(label: str, tensor: Tensor, bias: Tensor) -> None:
    """Raise TypeError unless a tensor has the dtype and device of the bias."""
    if tensor.dtype != bias.dtype or tensor.device != bias.device:
        raise TypeError(
            f"{label} must have the dtype and device of b, {bias.dtype} on {bias.device}; got "
            f"{tensor.dtype} on {tensor.device}. Convert one of them."
        )
