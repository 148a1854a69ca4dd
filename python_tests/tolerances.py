"""How far results may differ from float64 algebra, by the dtype they were computed in."""

from __future__ import annotations

import torch

RELATIVE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare in float64, relative to the largest entry expected."""
    scale = expected.double().abs().max().item() if expected.numel() else 0.0
    tolerance = RELATIVE[dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-300)
    )
