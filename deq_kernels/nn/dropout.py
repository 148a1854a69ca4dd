"""Variational dropout: one mask per solve, so that the cell stays a fixed map."""

import torch
from torch import Tensor, nn


class VariationalDropout(nn.Module):
    """Drops whole channels with a mask that stays fixed until it is resampled.

    A solver needs the same f at every evaluation, so the mask must not change during a solve.
    `resample` draws mask / (1 - p) with mask ~ Bernoulli(1 - p), of shape [N, C, 1, 1], from
    PyTorch's global generator; `forward` multiplies by it. In eval mode, and for p = 0, both do
    nothing and no random number is drawn.

    Args:
        p: probability of dropping a channel, 0 <= p < 1.

    Raises:
        ValueError: p is outside [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"the dropout probability must lie in [0, 1), got {p}")
        self.p = p
        self.mask: Tensor | None = None

    def resample(
        self, batch: int, channels: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Draw a new mask for `batch` samples of `channels` channels."""
        if not self.training or self.p == 0.0:
            return
        keep = torch.full((batch, channels, 1, 1), 1.0 - self.p, dtype=dtype, device=device)
        self.mask = torch.bernoulli(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the present mask to x [N, C, H, W].

        Raises:
            RuntimeError: training mode and no mask drawn for a batch of this shape.
        """
        if not self.training or self.p == 0.0:
            return x
        if self.mask is None or self.mask.shape[:2] != x.shape[:2]:
            drawn = "none" if self.mask is None else str(tuple(self.mask.shape))
            raise RuntimeError(
                f"variational dropout needs a mask for [N, C] = {tuple(x.shape[:2])}, present "
                f"mask: {drawn}; call resample() once before each solve"
            )
        return x * self.mask

    def extra_repr(self) -> str:
        return f"p={self.p}"
