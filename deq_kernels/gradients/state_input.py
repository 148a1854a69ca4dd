"""Where a recorded f begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StateInput(torch.autograd.Function):
    """The z at which f is recorded: products with Jᵀ end here, and so does the backward pass.

    Without it the backward pass of the loss would leave Jᵀw behind as the gradient of a leaf.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        return None


STATE_INPUT_NODE = f"{StateInput.__name__}Backward"
"""What autograd's graph calls it."""
