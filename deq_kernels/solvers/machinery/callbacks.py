"""What solvers ask of the outer problem: vectors of the state's shape, and values per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.options import check_callback, check_count
from deq_kernels.solvers.machinery.structure import State, Structure

StateFunction = Callable[..., State]
"""A function of the iterate that returns a state of the same structure."""

ValueFunction = Callable[..., Tensor]
"""A function of the iterate that returns one value per sample, [batch]."""


def check_outer_problem(opa_every: int | None, outer_gradient: StateFunction | None) -> None:
    """Raise ValueError unless both options are given or neither, a count and a callable."""
    if opa_every is not None:
        check_count("opa_every", opa_every)
    check_callback("outer_gradient", outer_gradient)
    if (opa_every is None) != (outer_gradient is None):
        given, missing = ("opa_every", "outer_gradient")
        if opa_every is None:
            given, missing = missing, given
        raise ValueError(
            f"opa_every and outer_gradient go together; got {given} without {missing}. Give both, "
            "or neither for a solve that knows nothing of the outer problem."
        )


def call_for_state(name: str, function: StateFunction, structure: Structure, z: Tensor) -> Tensor:
    """function(z) as rows [batch, dim], detached; z [batch, dim] is handed over as a copy.

    Autograd is on for the call, so that `function` may use it.

    Raises:
        TypeError: the result is not of the state's structure, dtype or device.
        ValueError: it has another shape.
    """
    with torch.enable_grad():
        result = function(structure.unflatten(z.detach().clone()))
    return structure.flatten(result, name=name).detach()


def call_for_values(
    name: str, function: ValueFunction, structure: Structure, z: Tensor
) -> tuple[Tensor, float]:
    """function(z) [batch] in float64, detached, and the rounding unit of the dtype it came in.

    Raises:
        TypeError: the result is no tensor of floating-point numbers on the state's device.
        ValueError: it has another shape than [batch].
    """
    values = function(structure.unflatten(z.detach().clone()))
    if not isinstance(values, Tensor) or not values.dtype.is_floating_point:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must return a tensor of floating-point numbers; got {kind}.")
    if values.shape != (structure.batch,):
        raise ValueError(
            f"{name} must return one value per sample, [{structure.batch}]; got "
            f"{list(values.shape)}. Sum over each sample's state, not over the batch."
        )
    if values.device != structure.device:
        raise TypeError(f"{name} must return values on {structure.device}; got {values.device}.")
    return values.detach().double(), torch.finfo(values.dtype).eps
