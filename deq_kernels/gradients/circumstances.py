"""What a backward pass must know of the forward pass besides its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_kernels.gradients.watch import Equation, Watch
from deq_kernels.notices import DetachedStateWarning, warn_user
from deq_kernels.solvers.machinery.precision import recorded_in, working_dtype


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How f was recorded.

    Attributes:
        dtype: the coarsest format that it worked in.
        watch: reports the solves; None: nothing does.
    """

    dtype: torch.dtype
    watch: Watch | None

    @classmethod
    def now(cls, z_star: Tensor, watch: Watch | None) -> Circumstances:
        """Those of an f that is recorded at z_star now."""
        return cls(working_dtype(z_star.dtype, z_star.device.type), watch)

    @contextmanager
    def solving(self, equation: Equation) -> Iterator[None]:
        """Solve an equation in the recorded f inside of the block."""
        with recorded_in(self.dtype):
            if self.watch is None:
                yield
            else:
                with self.watch.during(equation):
                    yield

    def tell_of_detached_state(self, estimator: str) -> None:
        """Warn that products with Jᵀ are zero."""
        tell = warn_user if self.watch is None else self.watch.tell
        tell(
            DetachedStateWarning,
            f"{estimator} multiplies with the Jacobian of f, but autograd finds no way from f(z) "
            "to z: the gradient is the Jacobian-free one. Remove no_grad and detach from f's way "
            "of z, as in z.detach().requires_grad_(); or take JacobianFree() where that is meant.",
        )
