"""A torchdeq classifier of the handwritten digits, trained for some steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deq_zoo.data import load_digits

torchdeq = pytest.importorskip("torchdeq")

HIDDEN = 24


class DigitsDEQ(nn.Module):
    """z = tanh(A z + B x + c) for the pixels x, and a linear head on each state."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.injection = nn.Linear(64, HIDDEN)
        self.transition = nn.Linear(HIDDEN, HIDDEN, bias=False)
        with torch.no_grad():
            self.transition.weight.mul_(0.8 / torch.linalg.matrix_norm(self.transition.weight, 2))
        self.head = nn.Linear(HIDDEN, 10)
        self.deq = torchdeq.get_deq(**options)

    def forward(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        injected = self.injection(x)
        start = torch.zeros_like(injected)
        states, info = self.deq(lambda z: torch.tanh(self.transition(z) + injected), start)
        return [self.head(z) for z in states], info


def digits_batches(count: int, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Batches of pixels [size, 64] float64 and labels."""
    train = load_digits().train
    images, labels = train.images.flatten(1).double(), train.labels
    return [
        (images[i * size : (i + 1) * size], labels[i * size : (i + 1) * size]) for i in range(count)
    ]


def train(model: DigitsDEQ, steps: int) -> list[float]:
    """The losses of `steps` steps of Adam; the loss is the mean over the layer's states."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for x, label in digits_batches(steps):
        logits, _ = model(x)
        terms = [nn.functional.cross_entropy(each, label) for each in logits]
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def new_model(seed: int = 0, **options: Any) -> DigitsDEQ:
    """A model with the weights of that seed, in float64."""
    torch.manual_seed(seed)
    return DigitsDEQ(**options).double()
