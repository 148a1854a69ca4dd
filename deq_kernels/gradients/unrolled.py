"""The unrolling-based phantom gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deq_kernels.cells.map import StructuredMap
from deq_kernels.gradients.base import BARE_CALL, FlatMap, Gradient, LayerCall
from deq_kernels.gradients.neumann import check_phantom_options
from deq_kernels.gradients.watch import Watch
from deq_kernels.inverse import InverseJacobian
from deq_kernels.options import check_callback
from deq_kernels.solvers import FixedPoint, State


@dataclass(frozen=True, kw_only=True)
class Unrolled(Gradient):
    """UPG: autograd through h ← λ f(h) + (1 − λ) h, `steps` times from z* (PG, equation 16).

    The last h is what the layer returns and what the loss sees. Without autograd nothing is
    unrolled and the layer returns z* itself. Memory grows with `steps`.

        states = []
        layer = DEQ(cell, gradient=Unrolled(steps=5, on_states=states.extend))
        ...
        states.clear()
        z = layer(z0, x)
        loss = criterion(z) + 0.1 * sum(criterion(h) for h in states[:-1])

    Args:
        steps: k, at least 1.
        damping: λ in (0, 1].
        on_states: called in every forward pass under autograd with the tuple (h₁, …, h_k), each in
            the structure of z0 and part of the graph, for auxiliary losses; they are copies, and
            h_k has the values of what the layer returns. Whoever keeps the states keeps the graph.

    Raises:
        ValueError: an option is out of its range.
    """

    unrolls: ClassVar[bool] = True

    steps: int = 5
    damping: float = 0.5
    on_states: Callable[[tuple[State, ...]], object] | None = None

    def __post_init__(self) -> None:
        self._take_numpy_numbers()
        check_phantom_options(self.steps, self.damping)
        check_callback("on_states", self.on_states)

    def attach(
        self,
        f: FlatMap,
        z_star: Tensor,
        inverse: InverseJacobian | None,
        call: LayerCall = BARE_CALL,
    ) -> Tensor:
        """h after `steps` damped applications of f to the detached z_star."""
        h = z_star.detach()
        states = []
        for _ in range(self.steps):
            # lerp is one pass forward and one backward.
            f_h = f(h)
            h = f_h if self.damping == 1.0 else torch.lerp(h, f_h, self.damping)
            if self.on_states is not None:
                states.append(h)
        if self.on_states is not None:
            self.on_states(tuple(call.separate(h) for h in states))
        return h

    @property
    def takes_structured(self) -> bool:
        """A step is one call of the op and one activation."""
        return True

    def attach_structured(
        self, f: StructuredMap, z_star: Tensor, solver: FixedPoint, watch: Watch
    ) -> Tensor:
        """h after `steps` damped applications of f, or without autograd z* itself."""
        return self.attach(f, z_star, None) if torch.is_grad_enabled() else z_star.clone()
