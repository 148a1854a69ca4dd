"""Variational dropout: one mask per solve, so that the cell stays a fixed map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class VariationalDropout(nn.Module):
    """Multiplies by a mask that stays fixed until it is resampled, constant along some dimensions.

    A solver needs the same f at every evaluation, so the mask must not change during a solve.
    `resample` draws mask / (1 - p) with mask ~ Bernoulli(1 - p) from PyTorch's global generator;
    `forward` multiplies by it. In eval mode, and for p = 0, both do nothing and no random number
    is drawn.

    Args:
        p: probability of dropping, 0 <= p < 1.
        shared: the dimensions of x along which the mask is constant: (2, 3) drops whole channels of
            x [N, C, H, W]; (1,) drops the same features at every position of x [N, T, D]; ()
            drops entries one by one.

    Raises:
        ValueError: p is outside [0, 1), or `shared` holds a negative number or one twice.
    """

    def __init__(self, p: float, *, shared: Sequence[int] = (2, 3)) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"the dropout probability must lie in [0, 1), got {p}")
        if any(dim < 0 for dim in shared) or len(set(shared)) != len(shared):
            raise ValueError(
                f"shared must hold different dimensions, counted from 0; got {tuple(shared)}"
            )
        self.p = p
        self.shared = tuple(sorted(shared))
        self.mask: Tensor | None = None

    def resample(self, *sizes: int, dtype: torch.dtype, device: torch.device) -> None:
        """Draw a new mask; `sizes` are those of the dimensions of x that are not shared, in order.

        Raises:
            ValueError: a shared dimension lies beyond the end of such an x.
        """
        shape = list(sizes)
        for dim in self.shared:
            if dim > len(shape):
                raise ValueError(
                    f"shared = {self.shared} needs a tensor of more dimensions than those of "
                    f"sizes {sizes} give"
                )
            shape.insert(dim, 1)
        if not self.training or self.p == 0.0:
            return
        keep = torch.full(shape, 1.0 - self.p, dtype=dtype, device=device)
        self.mask = torch.bernoulli(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the present mask to x.

        Raises:
            RuntimeError: training mode and no mask drawn for an x of this shape.
        """
        if not self.training or self.p == 0.0:
            return x
        needed = [1 if dim in self.shared else size for dim, size in enumerate(x.shape)]
        if self.mask is None or list(self.mask.shape) != needed:
            drawn = "none" if self.mask is None else str(tuple(self.mask.shape))
            raise RuntimeError(
                f"variational dropout needs a mask of shape {tuple(needed)}, present mask: "
                f"{drawn}; call resample() once before each solve"
            )
        return x * self.mask

    def extra_repr(self) -> str:
        return f"p={self.p}, shared={self.shared}"
