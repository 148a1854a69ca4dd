"""Clipped gradients have the length that was asked for, and their direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deq_zoo.clipping import clip_gradients


def _parameters() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([3.0, 4.0])
    parameters[1].grad = torch.tensor([0.0, 0.3])
    return parameters


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor | None]:
    return [parameter.grad for parameter in parameters]


@pytest.mark.parametrize(
    ("norm", "each", "first", "second"),
    [
        (None, None, [3.0, 4.0], [0.0, 0.3]),
        (None, 0.5, [0.3, 0.4], [0.0, 0.3]),
        (0.5 * (25.09**0.5), None, [1.5, 2.0], [0.0, 0.15]),
        (9.0, None, [3.0, 4.0], [0.0, 0.3]),
        (0.5 * (0.34**0.5), 0.5, [0.15, 0.2], [0.0, 0.15]),
    ],
)
def test_lengths(
    norm: float | None, each: float | None, first: list[float], second: list[float]
) -> None:
    parameters = _parameters()
    clip_gradients(parameters, norm=norm, each=each)
    one, two, none = _gradients(parameters)
    torch.testing.assert_close(one, torch.tensor(first), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two, torch.tensor(second), rtol=1e-4, atol=1e-6)
    assert none is None
