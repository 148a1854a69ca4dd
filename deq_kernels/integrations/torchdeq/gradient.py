"""This package's gradients, SHINE among them, in torchdeq's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deq_kernels.gradients import Gradient, record_first
from deq_kernels.integrations.torchdeq.own_solvers import OwnSolver
from deq_kernels.integrations.torchdeq.solvers import Result, broyden
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_kind
from deq_kernels.solvers import PerSample, Structure

Layer = TypeVar("Layer", bound=nn.Module)


def set_gradient(deq: Layer, gradient: Gradient) -> Layer:
    """Let a torchdeq layer differentiate its last state by a gradient of this package.

    It takes the place of what `ift=True` puts there; states before the last keep their phantom
    gradients. With `Shine` the forward solver's inverse is kept from the solve to its backward
    pass, in training mode only. A trajectory of `DEQIndexing` that a solve cut short is filled up
    with its result, so that the last state always has this gradient.

    Args:
        deq: a `DEQIndexing` or `DEQSliced`, changed in place; once.
        gradient: such as `deq_kernels.Shine(fallback=1.3)`.

    Returns:
        deq.

    Raises:
        TypeError: deq is no such layer, or gradient no gradient.
        ValueError: the gradient needs an inverse Jacobian that deq's forward solver does not build,
            or deq has such a gradient already.
    """
    produce, solver = getattr(deq, "produce_grad", None), getattr(deq, "f_solver", None)
    if not isinstance(produce, list) or not produce or not callable(solver):
        raise TypeError(
            "set_gradient takes a layer of torchdeq with its f_solver and produce_grad; got "
            f"{type(deq).__name__}. Make one with torchdeq.get_deq."
        )
    check_kind("gradient", gradient, Gradient, "dk.Shine()")
    if isinstance(solver, _Remembering):
        raise ValueError("deq must not have a gradient of this package yet; make a new layer.")
    if gradient.needs_inverse and not _builds_inverse(solver):
        raise ValueError(
            f"{type(gradient).__name__} needs a forward solver that builds an inverse Jacobian; "
            f"got {getattr(solver, '__name__', solver)!r}. Call register() and make the layer with "
            'f_solver="broyden", "dk_broyden" or "dk_adjoint_broyden".'
        )
    remembering = _Remembering(deq, solver, gradient.needs_inverse)
    attached: Any = deq
    attached.f_solver = remembering
    attached.produce_grad = [*produce[:-1], _Attach(gradient, remembering)]
    return deq


def _builds_inverse(solver: Callable[..., Any]) -> bool:
    if isinstance(solver, OwnSolver):
        return solver.solver.builds_inverse
    return solver is broyden


class _Remembering:
    """A forward solver that keeps its last inverse estimate until it is taken."""

    def __init__(self, deq: nn.Module, solver: Callable[..., Result], keeps_inverse: bool) -> None:
        self._deq, self._solver, self._keeps = deq, solver, keeps_inverse
        self._inverse: InverseJacobian | None = None

    def __call__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Result:
        if self._deq.training:
            func = PerSample(func)
            record_first(func)
            if self._keeps:
                kwargs["on_inverse"] = self._keep
        z, trajectory, info = self._solver(func, *args, **kwargs)
        indexing = kwargs.get("indexing") or ()
        return z, trajectory + [z] * (len(indexing) - len(trajectory)), info

    def _keep(self, inverse: InverseJacobian) -> None:
        self._inverse = inverse

    def take(self) -> InverseJacobian | None:
        """The estimate, of which nothing is left here."""
        inverse, self._inverse = self._inverse, None
        return inverse


class _Attach:
    """What torchdeq calls for the gradient of a state."""

    def __init__(self, gradient: Gradient, solver: _Remembering) -> None:
        self._gradient, self._solver = gradient, solver

    def __call__(
        self,
        trainer: nn.Module,
        func: Callable[[Tensor], Tensor],
        z_pred: Tensor,
        writer: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        if writer is not None:
            raise ValueError(
                "backward_writer must be None with a gradient of this package; pass on_solve to "
                "Implicit or Adaptive instead."
            )
        structure = Structure.of(z_pred, "z")

        def flat(z: Tensor) -> Tensor:
            allow_cast = torch.is_autocast_enabled(z.device.type)
            return structure.flatten(func(z.view(z_pred.shape)), allow_cast=allow_cast)

        z_star = structure.flatten(z_pred)
        attached = self._gradient.attach(flat, z_star, self._solver.take())
        # A copy, so that the caller may change the state in place.
        return [attached.view(z_pred.shape).clone()]
