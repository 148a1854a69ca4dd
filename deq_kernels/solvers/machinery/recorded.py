"""A map whose evaluations can be differentiated afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deq_kernels.solvers.machinery.structure import State, Structure, evaluate


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
            f_z = structure.flatten(evaluate(self._f, structure.views(z), z), allow_cast=allow_cast)
        self._input, self._output = z, f_z
        return structure.unflatten(f_z.detach())

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
