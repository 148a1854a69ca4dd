"""The activations φ of structured cells; `csrc/algebra/activation.h` numbers the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from deq_kernels.ops.dtypes import accumulate_dtype


class Activation(IntEnum):
    """φ, applied to each element."""

    IDENTITY = 0
    RELU = 1
    TANH = 2
    SIGMOID = 3
    ELU = 4
    """x above 0, eˣ − 1 below."""
    SOFTPLUS = 5
    """log(1 + eˣ), for every x: there is no threshold above which it is x."""
    GELU = 6
    """x (1 + erf(x / √2)) / 2, not its approximation with tanh."""


def _relu_slope(x: Tensor) -> Tensor:
    # A comparison that writes numbers takes a tenth of one that is converted. It has no derivative.
    return torch.gt(x.detach(), 0.0, out=torch.empty_like(x))


def _tanh_slope(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    return 1.0 - y * y


def _sigmoid_slope(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return y * (1.0 - y)


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * density


_Elementwise = Callable[[Tensor], Tensor]

# φ and φ'. At a kink φ' is what autograd takes: 0 for relu at 0, 1 for elu.
_FORMULAS: dict[Activation, tuple[_Elementwise, _Elementwise]] = {
    Activation.IDENTITY: (lambda x: x, torch.ones_like),
    Activation.RELU: (torch.relu, _relu_slope),
    Activation.TANH: (torch.tanh, _tanh_slope),
    Activation.SIGMOID: (torch.sigmoid, _sigmoid_slope),
    Activation.ELU: (functional.elu, lambda x: torch.exp(x.clamp(max=0.0))),
    Activation.SOFTPLUS: (lambda x: torch.logaddexp(x, torch.zeros_like(x)), torch.sigmoid),
    Activation.GELU: (functional.gelu, _gelu_slope),
}

NAMES = tuple(activation.name.lower() for activation in Activation)
"""As users write them."""


def value(activation: Activation, x: Tensor) -> Tensor:
    """φ(x), differentiable; shape and dtype of x."""
    return _FORMULAS[activation][0](x)


def slope(activation: Activation, x: Tensor) -> Tensor:
    """φ'(x), differentiable; shape and dtype of x. At a kink it is what autograd takes."""
    return _FORMULAS[activation][1](x.to(accumulate_dtype(x.dtype))).to(x.dtype)
