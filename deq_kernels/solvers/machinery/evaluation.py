"""Evaluations of f at the iterates of one solve, as rows [B, d]."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from deq_kernels.solvers.machinery.structure import State, Structure, evaluate

Evaluation: TypeAlias = Callable[[], Tensor]
"""f(z) [B, d] at the present iterates.

Raises:
    OutputError: f changed its z in place, or returned what is no state of the structure.
"""


def bind_evaluation(f: Callable[..., State], structure: Structure, z: Tensor) -> Evaluation:
    """f at z [B, d], which later steps overwrite."""
    state = structure.views(z)
    allow_cast = torch.is_autocast_enabled(structure.device.type)
    return lambda: structure.flatten(evaluate(f, state, z), allow_cast=allow_cast)


class RecordedEvaluation:
    """The same under autograd, with products w ↦ Jᵀw at the point of the last evaluation.

    f gets a copy of z, and its result is detached: only one evaluation is ever recorded.
    """

    def __init__(self, f: Callable[..., State], structure: Structure, z: Tensor) -> None:
        self._f, self._structure, self._z = f, structure, z
        self._allow_cast = torch.is_autocast_enabled(structure.device.type)
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def __call__(self) -> Tensor:
        """f(z); see `Evaluation`."""
        structure = self._structure
        with torch.enable_grad():
            # A copy: the steps overwrite z before the products are taken.
            z = self._z.detach().requires_grad_().clone()
            state = evaluate(self._f, structure.views(z), z)
            f_z = structure.flatten(state, allow_cast=self._allow_cast)
        self._input, self._output = z, f_z
        return f_z.detach()

    def vjp(self, w: Tensor) -> Tensor:
        """Jᵀw for w [B, d] in the state's dtype.

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
