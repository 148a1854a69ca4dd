"""The estimators to compare, and one measurement of an estimator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from deq_kernels.diagnostics.exact import Point
from deq_kernels.gradients import GRADIENTS, Gradient
from deq_kernels.inverse import InverseJacobian


def default_estimators(layer_gradient: Gradient | None = None) -> dict[str, Gradient]:
    """Every estimator of `deq_kernels.gradients` as it is by default, by name.

    Args:
        layer_gradient: put first, unless it is one of them.
    """
    estimators: dict[str, Gradient] = {}
    defaults = [
        kind()
        for kind in sorted(GRADIENTS.values(), key=lambda kind: kind.__name__)
        if _has_defaults(kind)
    ]
    if layer_gradient is not None and layer_gradient not in defaults:
        estimators[f"{_label(layer_gradient)}, the layer's"] = layer_gradient
    estimators.update((_label(gradient), gradient) for gradient in defaults)
    return estimators


def silenced(gradient: Gradient) -> Gradient:
    """The gradient without its `on_solve`, which reports to its owner about training."""
    if not any(field.name == "on_solve" for field in _fields(gradient)):
        return gradient
    quiet: Gradient = dataclasses.replace(cast(Any, gradient), on_solve=None)
    return quiet


@dataclass(frozen=True)
class Measurement:
    """What one estimator gave, and what it took.

    Attributes:
        w: [B, d], the vector that (∂f/∂θ)ᵀ is multiplied with; in effect, for an estimator that
            differentiates another expression.
        parameters: gradient of each parameter, in its shape.
        evaluations: of f, recorded by autograd.
        backward_passes: through one evaluation of f.
    """

    w: Tensor
    parameters: tuple[Tensor, ...]
    evaluations: int
    backward_passes: int


def measure(
    gradient: Gradient, point: Point, inverse: InverseJacobian | None, cotangent: Tensor
) -> Measurement:
    """Attach the gradient at the point and send the cotangent back. Call with autograd on.

    The map differentiated is f(z) + b with b = 0, whose gradient with respect to b is w.
    """
    shift = torch.zeros_like(point.z, requires_grad=True)
    evaluations, passes = 0, 0

    def count_pass(_: Tensor) -> None:
        nonlocal passes
        passes += 1

    def shifted(z: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        f_z = point.f(z) + shift
        if f_z.requires_grad:
            f_z.register_hook(count_pass)
        return f_z

    z = gradient.attach(shifted, point.z, inverse)
    # The graph is kept: weights computed once per solve are shared with the next estimator.
    w, *gradients = torch.autograd.grad(
        z,
        (shift, *point.parameters),
        cotangent.to(z.dtype),
        retain_graph=True,
        materialize_grads=True,
    )
    return Measurement(w, tuple(gradients), evaluations, passes)


def _has_defaults(kind: type[Gradient]) -> bool:
    """Whether it can be made without arguments."""
    return not getattr(kind, "__abstractmethods__", None) and not any(
        field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        for field in _fields(kind)
    )


def _label(gradient: Gradient) -> str:
    """Its name, with the numbers it was made with; 0 stands for what is left out."""
    options = ((field.name, getattr(gradient, field.name)) for field in _fields(gradient))
    numbers = [
        f"{name}={value}" for name, value in options if isinstance(value, int | float) and value
    ]
    return type(gradient).__name__ + (f"({', '.join(numbers)})" if numbers else "")


def _fields(gradient: Any) -> tuple[dataclasses.Field[Any], ...]:
    """Its options; an estimator of the user's need not be a dataclass."""
    return dataclasses.fields(gradient) if dataclasses.is_dataclass(gradient) else ()
