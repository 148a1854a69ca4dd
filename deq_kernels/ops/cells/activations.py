"""The activations φ of structured cells; `csrc/algebra/activation.h` numbers the same."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional


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


_VALUES: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.IDENTITY: lambda x: x,
    Activation.RELU: torch.relu,
    Activation.TANH: torch.tanh,
    Activation.SIGMOID: torch.sigmoid,
    Activation.ELU: functional.elu,
    Activation.SOFTPLUS: lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    Activation.GELU: functional.gelu,
}


def value(activation: Activation, x: Tensor) -> Tensor:
    """φ(x), differentiable; shape and dtype of x."""
    return _VALUES[activation](x)
