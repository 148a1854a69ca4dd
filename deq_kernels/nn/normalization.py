"""Weight norm and spectral norm, torch's parametrizations, for the modules of a cell.

Every read of a parametrised weight computes it; run each solve inside `deq_kernels.nn.one_solve`.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def weight_norm(module: AnyModule, *, name: str = "weight", dim: int = 0) -> AnyModule:
    """W = g V / ‖V‖, with a norm for each index of `dim` (Salimans and Kingma 2016).

    `torch.nn.utils.parametrizations.weight_norm`, whose parameters `original0` and `original1`
    are g and V. It parts length from direction, and bounds nothing by itself.

    Args:
        module: changed in place, and returned.
        name: of the parameter.
        dim: the dimension that keeps a norm of its own; -1 for one norm of the whole.

    Raises:
        ValueError: the module has no such parameter.
    """
    _check_parameter(module, name)
    parametrizations.weight_norm(module, name, dim)
    return module


def spectral_norm(
    module: AnyModule,
    *,
    name: str = "weight",
    bound: float = 1.0,
    power_steps: int = 1,
    dim: int | None = None,
) -> AnyModule:
    """W = bound · V / σ(V), with σ(V) from the power method (Miyato et al. 2018).

    `torch.nn.utils.parametrizations.spectral_norm`, scaled. Below a 1-Lipschitz activation a bound
    less than 1 makes z ↦ φ(Wz + u) a contraction (the synthetic setting of the phantom-gradient
    paper has 0.9). σ is that of V as a matrix [out, rest]: for a convolution with a kernel of k × k
    the map's own norm can be up to k times the bound. In training mode each computation takes
    `power_steps` steps of the power method and moves V's stored singular vectors, which random
    numbers of torch's global generator begin; in evaluation mode it uses them as they are.

    Args:
        module: changed in place, and returned.
        name: of the parameter.
        bound: σ(W), above 0.
        power_steps: per computation, at least 1.
        dim: the dimension of the outputs; None for 0, or 1 for transposed convolutions.

    Raises:
        ValueError: the module has no such parameter, or an option is out of its range.
    """
    _check_parameter(module, name)
    if not 0 < bound < float("inf"):
        raise ValueError(f"bound must be finite and above 0; got {bound!r}.")
    if power_steps < 1:
        raise ValueError(f"power_steps must be at least 1; got {power_steps!r}.")
    parametrizations.spectral_norm(module, name, n_power_iterations=power_steps, dim=dim)
    if bound != 1.0:
        parametrize.register_parametrization(module, name, _Scale(bound))
    return module


class _Scale(nn.Module):
    """W = bound · V."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, weight: Tensor) -> Tensor:
        return self.bound * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What gives this weight, for assignments."""
        return weight / self.bound

    def extra_repr(self) -> str:
        """The bound, for print(module)."""
        return f"bound={self.bound}"


def _check_parameter(module: nn.Module, name: str) -> None:
    if not isinstance(getattr(module, name, None), Tensor):
        raise ValueError(
            f"module must have a parameter called {name!r}; {type(module).__name__} has none."
        )
