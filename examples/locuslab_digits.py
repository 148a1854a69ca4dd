"""A deep equilibrium layer as in locuslab/mdeq, SHINE and phantom_grad: one import line replaced.

Those repositories import `broyden` and `rmatvec` from a file of their own, `modules.broyden` or
`mdeq_lib.modules.broyden`. The layer below is written in their style; the import is the change.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deq_kernels.integrations.locuslab.shine import broyden, rmatvec
from deq_zoo.data import load_digits

GRADIENTS = ("exact", "shine", "phantom")


class Cell(nn.Module):
    """f(z, x): two convolutions with group normalisation, on channels × pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for _ in range(3))
        for conv in (self.inner, self.outer):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        z = z.view_as(x)
        hidden = self.norms[1](x + self.outer(torch.relu(self.norms[0](self.inner(z)))))
        return self.norms[2](torch.relu(z + hidden)).flatten(2)


class EquilibriumLayer(nn.Module):
    """z = f(z, x) by Broyden's method on g(z) = f(z, x) − z, states [B, channels, pixels]."""

    def __init__(self, f: nn.Module, gradient: str, threshold: int) -> None:
        super().__init__()
        self.f, self.gradient, self.threshold = f, gradient, threshold
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        z0 = torch.zeros_like(x).flatten(2)
        with torch.no_grad():
            eps = 1e-3 * z0.numel() ** 0.5
            info = broyden(lambda z: self.f(z, x) - z, z0, self.threshold, eps, name="forward")
        self.steps = info["nstep"]
        z = info["result"]
        if not self.training:
            return z
        if self.gradient == "phantom":
            for _ in range(5):
                z = 0.5 * z + 0.5 * self.f(z, x)
            return z
        at = z.detach().requires_grad_()
        f_at = self.f(at, x)
        new_z = self.f(z, x)
        new_z.register_hook(lambda grad: self._backward(at, f_at, info, grad))
        return new_z

    def _backward(self, at: Tensor, f_at: Tensor, info: dict[str, Any], grad: Tensor) -> Tensor:
        if self.gradient == "shine":
            return -rmatvec(info["Us"], info["VTs"], grad)

        def equation(w: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(f_at, at, w, retain_graph=True)
            return product - w + grad

        eps = 1e-6 * grad.norm().item()
        start = torch.zeros_like(grad)
        return broyden(equation, start, self.threshold, eps, name="backward")["result"]


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train with each gradient, print what came of it, and return the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--channels", type=int, default=16, help="a multiple of 4 (default: 16)")
    parser.add_argument("--steps", type=int, default=30, help="training steps (default: 30)")
    parser.add_argument("--threshold", type=int, default=18, help="solver steps (default: 18)")
    parser.add_argument("--quick", action="store_true", help="few channels and steps")
    args = parser.parse_args(argv)
    channels, steps, size = (4, 4, 32) if args.quick else (args.channels, args.steps, 64)

    split = load_digits().train
    found = {}
    for gradient in GRADIENTS:
        torch.manual_seed(0)
        stem = nn.Conv2d(1, channels, 3, padding=1)
        layer = EquilibriumLayer(Cell(channels), gradient, args.threshold)
        head = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 10))
        model = nn.ModuleList([stem, layer, head])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses, start = [], time.perf_counter()
        for step in range(steps):
            batch = torch.arange(step * size, (step + 1) * size) % len(split.images)
            logits = head(layer(stem(split.images[batch])))
            loss = nn.functional.cross_entropy(logits, split.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(
            f"{gradient:>8}: loss {losses[0]:.3f} to {losses[-1]:.3f}, {layer.steps} solver steps "
            f"in the last forward pass, {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        found[gradient] = losses
    return found


if __name__ == "__main__":
    main()
