"""Losses on intermediate states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.nn import correction_weights, fixed_point_correction


def test_weights_by_hand() -> None:
    assert correction_weights(3) == pytest.approx((0.64, 0.8, 1.0))
    assert correction_weights(3, gamma=0.5) == (0.25, 0.5, 1.0)
    assert correction_weights(4, decay="linear") == pytest.approx((0.325, 0.55, 0.775, 1.0))
    assert correction_weights(2, decay="linear", gamma=0.5) == (0.75, 1.0)
    assert correction_weights(2, decay="constant") == (1.0, 1.0)
    assert correction_weights(1) == (1.0,)


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"weights": (0.1, -2.0, 3.0)}])
def test_the_loss_is_the_weighted_sum(options: dict[str, Any]) -> None:
    states = [torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    target = torch.randn(4, 5, dtype=torch.float64)
    result = fixed_point_correction(F.mse_loss, states, target, **options)
    weights = {
        (): (0.64, 0.8, 1.0),
        ("gamma",): (0.25, 0.5, 1.0),
        ("weights",): (0.1, -2.0, 3.0),
    }[tuple(options)]
    assert result.weights == pytest.approx(weights)
    expected = sum(w * F.mse_loss(z, target) for w, z in zip(weights, states, strict=True))
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    for weight, state, part in zip(weights, states, result.parts, strict=True):
        torch.testing.assert_close(state.grad, weight * 2 * (state.detach() - target) / 20)
        torch.testing.assert_close(part, F.mse_loss(state.detach(), target))
        assert not part.requires_grad


def test_tuples_as_states_and_losses_per_sample() -> None:
    states = [(torch.randn(3, 2), torch.randn(3, 4)) for _ in range(2)]

    def criterion(state: tuple[Tensor, Tensor], factor: float) -> Tensor:
        return factor * (state[0].sum(1) + state[1].sum(1))

    result = fixed_point_correction(criterion, states, 2.0, gamma=0.5)
    expected = 0.5 * criterion(states[0], 2.0) + criterion(states[1], 2.0)
    torch.testing.assert_close(result.loss, expected)
    assert result.loss.shape == (3,)


def test_gradcheck() -> None:
    states = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    target = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *z: fixed_point_correction(F.mse_loss, z, target).loss, states
    )


@pytest.mark.parametrize(
    ("states", "options", "message"),
    [
        (0, {}, "states must hold at least the solution"),
        (2, {"weights": (1.0,)}, "weights must be 2 finite numbers"),
        (1, {"weights": (float("nan"),)}, "weights must be 1 finite numbers"),
        (1, {"weights": (1.0,), "gamma": 0.5}, "give one of them"),
        (1, {"gamma": 0.0}, "gamma must be above 0 and at most 1; got 0.0"),
        (1, {"gamma": 1.5}, "gamma must be above 0 and at most 1; got 1.5"),
    ],
)
def test_refused(states: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_point_correction(torch.sum, [torch.ones(1, 1)] * states, **options)


def test_refused_weights() -> None:
    with pytest.raises(ValueError, match="count must be a whole number"):
        correction_weights(0)
    with pytest.raises(ValueError, match="decay must be one of exponential, linear, constant"):
        correction_weights(2, decay="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes no gamma"):
        correction_weights(2, decay="constant", gamma=0.5)


def test_refused_criteria() -> None:
    states = [torch.ones(1, 2), torch.ones(1, 3)]
    with pytest.raises(ValueError, match=r"one shape for all states; got \[2\] and \[3\]"):
        fixed_point_correction(lambda z: z[0], states)
    with pytest.raises(TypeError, match="must return a tensor; got float"):
        fixed_point_correction(lambda z: z.sum().item(), states)
