"""SciPy's Broyden method on one sample."""

import math
from typing import TYPE_CHECKING

from deq_kernels.optional import optional_import

from ..provider import ProviderAbsentError

if TYPE_CHECKING:
    from torch import Tensor

    from .providers import Map, Solve


def load_scipy(device: str) -> "Solve":
    """``scipy.optimize.broyden1`` with unit steps and B₀ = −I.

    Raises:
        ProviderAbsentError: SciPy is not installed, or the device is not the CPU.
    """
    if device != "cpu":
        raise ProviderAbsentError("SciPy runs on a CPU only: measure with --device cpu")
    try:
        with optional_import(extra="bench"):
            from scipy.optimize import broyden1
    except ImportError as error:
        raise ProviderAbsentError(str(error)) from error
    import numpy as np
    import torch

    def solve(f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        state = torch.empty_like(z0)
        flat = state.numpy()[0]
        start = z0.numpy()[0].copy()
        best, lowest = start.copy(), math.inf

        def residual(x: "np.ndarray") -> "np.ndarray":
            nonlocal lowest
            flat[:] = x
            value = f(state).numpy()[0] - x
            norm = float(np.linalg.norm(value))
            if norm < lowest:
                lowest = norm
                best[:] = x
            return value

        broyden1(residual, start, iter=steps, alpha=1.0, line_search=None)
        return torch.from_numpy(best)[None]

    return solve
