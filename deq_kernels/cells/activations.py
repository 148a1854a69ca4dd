"""The activations of structured cells by name, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.ops.cells import Activation
from deq_kernels.ops.dtypes import accumulate_dtype
from deq_kernels.options import check_choice

ACTIVATIONS = {activation.name.lower(): activation for activation in Activation}
"""identity, relu, tanh, sigmoid, elu, softplus and gelu."""


def activation_of(name: str) -> Activation:
    """The activation of that name.

    Raises:
        ValueError: there is none.
    """
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def _relu(x: Tensor) -> Tensor:
    # A comparison that writes numbers takes a tenth of one that is converted. It has no derivative.
    return torch.gt(x.detach(), 0.0, out=torch.empty_like(x))


def _tanh(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    return 1.0 - y * y


def _sigmoid(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return y * (1.0 - y)


def _gelu(x: Tensor) -> Tensor:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * density


_SLOPES: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: _relu,
    Activation.TANH: _tanh,
    Activation.SIGMOID: _sigmoid,
    Activation.ELU: lambda x: torch.exp(x.clamp(max=0.0)),
    Activation.SOFTPLUS: torch.sigmoid,
    Activation.GELU: _gelu,
}


def slope(activation: Activation, x: Tensor) -> Tensor | None:
    """φ'(x), differentiable, in the shape and dtype of x; None for the identity, where it is 1.

    At a kink it is what autograd takes: 0 for relu at 0, 1 for elu.
    """
    if activation == Activation.IDENTITY:
        return None
    return _SLOPES[activation](x.to(accumulate_dtype(x.dtype))).to(x.dtype)
