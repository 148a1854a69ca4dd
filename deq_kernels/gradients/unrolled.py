"""The unrolling-based phantom gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.gradients.base import FlatMap, Gradient
from deq_kernels.gradients.neumann import check_phantom_options
from deq_kernels.inverse import InverseJacobian


@dataclass(frozen=True, kw_only=True)
class Unrolled(Gradient):
    """UPG: autograd through h ← λ f(h) + (1 − λ) h, `steps` times from z* (PG, equation 16).

    The last h is what the layer returns and what the loss sees. Without autograd nothing is
    unrolled and the layer returns z* itself. Memory grows with `steps`.

    Args:
        steps: k, at least 1.
        damping: λ in (0, 1].
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        check_phantom_options(self.steps, self.damping)

    def attach(self, f: FlatMap, z_star: Tensor, inverse: InverseJacobian | None) -> Tensor:
        """h after `steps` damped applications of f to the detached z_star."""
        h = z_star.detach()
        for _ in range(self.steps):
            # lerp is one pass forward and one backward.
            f_h = f(h)
            h = f_h if self.damping == 1.0 else torch.lerp(h, f_h, self.damping)
        return h
