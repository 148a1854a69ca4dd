"""A map whose evaluations can be differentiated afterwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from deq_kernels.solvers.structure import State, Structure, evaluate, tuple_of


class RecordedMap:
    """f, run under autograd, with products w ↦ Jᵀw at the point of its last evaluation.

    What f makes of a state is detached before it goes on, so that only one evaluation is ever
    recorded.
    """

    def __init__(self, f: Callable[..., State], structure: Structure) -> None:
        self._f = f
        self._structure = structure
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def __call__(self, state: State) -> State:
        """f(state).

        Raises:
            RuntimeError: f changed its z in place.
        """
        structure = self._structure
        allow_cast = torch.is_autocast_enabled(structure.device.type)
        with torch.enable_grad():
            # A copy: the solver's own buffer is overwritten before the products are taken.
            z = structure.flatten(state).detach().requires_grad_().clone()
            f_z = structure.flatten(evaluate(self._f, self._state(z), z), allow_cast=allow_cast)
        self._input, self._output = z, f_z
        return structure.unflatten(f_z.detach())

    def _state(self, z: Tensor) -> State:
        """z [batch, dim] as the user's state, in views that count changes in place with z.

        Autograd refuses such changes to views that were split off together, in words about split.
        """
        structure = self._structure
        if structure.kind is None:
            return structure.unflatten(z)
        ends = accumulate(structure.sizes)
        parts = (
            z.narrow(1, end - size, size).view(shape)
            for size, end, shape in zip(structure.sizes, ends, structure.shapes, strict=True)
        )
        return tuple_of(structure.kind, parts)

    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀw for w [batch, dim] in the state's dtype.

        Raises:
            RuntimeError: autograd finds no way from f(z) to z.
        """
        assert self._input is not None
        assert self._output is not None
        product = None
        if self._output.requires_grad:
            (product,) = torch.autograd.grad(
                self._output, self._input, w, retain_graph=True, allow_unused=True
            )
        if product is None:
            raise RuntimeError(
                "This solver multiplies with the Jacobian of f, but autograd finds no way from "
                "f(z) to z. Remove no_grad and detach from f, or use Broyden, which needs no "
                "derivatives."
            )
        return product.detach()
