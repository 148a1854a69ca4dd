"""The gradient that the estimators are held against, in the layer's dtype or in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deq_kernels.gradients import Implicit
from deq_kernels.nn.flat_states import flat_map, record, row_dot, vector_jacobian_product
from deq_kernels.solvers import Broyden, State, Structure


@dataclass(frozen=True)
class Point:
    """A map and the state at which it is differentiated.

    Attributes:
        f: the map of [B, d] to [B, d].
        z: the state, [B, d].
        parameters: what f is differentiated with respect to.
    """

    f: Callable[[Tensor], Tensor]
    z: Tensor
    parameters: Sequence[Tensor]


def default_exact(dtype: torch.dtype) -> Implicit:
    """The implicit gradient, solved as far as the dtype goes.

    Where J expands, Broyden's residual grows for many steps before it falls at once (a linear
    system of rank r takes at most 2r of them), so neither growth nor standstill ends the solve.
    """
    rtol = 1e-11 if dtype == torch.float64 else 1e-6
    solver = Broyden(max_steps=300, rtol=rtol, stall_steps=None, divergence_factor=1e15)
    return Implicit(solver=solver)


def adjoint_residual(point: Point, cotangent: Tensor) -> Callable[[Tensor], Tensor]:
    """w ↦ ‖ℓ + Jᵀw − w‖ / ‖ℓ‖ of each sample, [B, d] to [B] float64."""
    leaf, f_z = record(point.f, point.z, Structure.of(point.z, "z"))
    length = row_dot(cotangent, cotangent).sqrt()

    def residual(w: Tensor) -> Tensor:
        product = vector_jacobian_product(f_z, leaf, w.to(leaf.dtype), create_graph=False)
        left = cotangent.double() + product.double() - w.double()
        norm = row_dot(left, left).sqrt()
        return torch.where(norm == 0.0, 0.0, norm / length)  # a sample without loss is solved

    return residual


@contextmanager
def in_float64(
    cell: Callable[..., State],
    z: State,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    parameters: Sequence[Tensor],
) -> Iterator[Point]:
    """The same map on a copy of the cell and of what it is given, all in float64, at z.

    Raises:
        TypeError: the cell is no module, so that there is nothing to copy.
        ValueError: a parameter is not one of the cell's.
    """
    if not isinstance(cell, nn.Module):
        raise TypeError(
            "float64=True needs a cell that is a torch.nn.Module, to work on a copy in float64; "
            f"got {type(cell).__name__}. Wrap it, or leave float64 out."
        )
    places = {id(parameter): place for place, parameter in enumerate(cell.parameters())}
    if not all(id(parameter) in places for parameter in parameters):
        raise ValueError(
            "float64=True works on a copy of the cell, so parameters must be the cell's own; got "
            "others. Leave them, or float64, out."
        )
    twin = copy.deepcopy(cell).double()
    _fix_parametrized(twin)
    own = list(twin.parameters())
    wide_z, wide_args, wide_kwargs = _widened(z), _widened(tuple(args)), _widened(dict(kwargs))
    structure = Structure.of(wide_z, "z")
    f = flat_map(lambda v: twin(v, *wide_args, **wide_kwargs), structure)
    with torch.autocast(structure.device.type, enabled=False):
        chosen = [own[places[id(parameter)]] for parameter in parameters]
        yield Point(f, structure.flatten(wide_z), chosen)


def _fix_parametrized(module: nn.Module) -> None:
    """Compute each parametrised tensor once, with its graph, and let reads return it.

    torch's own cache must stay out of it: it knows a module by the original it was copied from,
    and would hand out that one's tensors. Evaluation mode keeps spectral norm from moving on.
    """
    for child in list(module.modules()):
        if parametrize.is_parametrized(child):
            assert isinstance(child.parametrizations, nn.ModuleDict)
            values = {
                name: _constant(parametrizations.eval()())
                for name, parametrizations in child.parametrizations.items()
            }
            child.__class__ = type(type(child).__name__, (type(child),), values)


def _constant(value: Tensor) -> property:
    return property(lambda _: value)


def _widened(value: Any) -> Any:
    """The value with every floating tensor in it in float64, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        parts = [_widened(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {name: _widened(part) for name, part in value.items()}
    return value
