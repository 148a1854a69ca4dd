"""A torchdeq layer on handwritten digits: its own solvers, ours under the same names, and SHINE."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import deq_kernels as dk
from deq_kernels.integrations import torchdeq as drop_in
from deq_kernels.optional import optional_import
from deq_zoo.data import load_digits

with optional_import(extra="bench"):
    import torchdeq

OPTIONS = {"f_max_iter": 30, "f_tol": 1e-4, "ift": True, "b_max_iter": 30, "b_tol": 1e-6}


class Classifier(nn.Module):
    """Digits through z = tanh(A z + B x + c); nothing in it knows which solver torchdeq has.

    ‖A‖ stays below 0.95, so that a fixed point exists and every solver finds it.
    """

    def __init__(self, core: str, solver: str, hidden: int) -> None:
        super().__init__()
        self.injection = nn.Linear(64, hidden)
        self.transition = nn.Parameter(torch.randn(hidden, hidden) / hidden)
        self.head = nn.Linear(hidden, 10)
        self.deq = torchdeq.get_deq(core=core, f_solver=solver, b_solver=solver, **OPTIONS)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.injection(x)
        weight = self.transition * (0.95 / self.transition.norm().clamp(min=0.95))
        states, _ = self.deq(
            lambda z: torch.tanh(z @ weight.T + injected), torch.zeros_like(injected)
        )
        return self.head(states[-1])


def train(
    model: Classifier, images: Tensor, labels: Tensor, steps: int
) -> tuple[list[float], float]:
    """Losses of some steps of Adam on batches of 128, and the seconds they took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    start = time.perf_counter()
    for step in range(steps):
        batch = torch.arange(step * 128, (step + 1) * 128) % len(images)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train, print what came of it, and return the losses of each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", choices=("indexing", "sliced"), default="indexing")
    parser.add_argument(
        "--solver", choices=("broyden", "anderson", "fixed_point_iter"), default="broyden"
    )
    parser.add_argument("--hidden", type=int, default=256, help="size of the state (default: 256)")
    parser.add_argument("--steps", type=int, default=40, help="training steps (default: 40)")
    parser.add_argument("--quick", action="store_true", help="a small state and few steps")
    args = parser.parse_args(argv)
    hidden, steps = (32, 6) if args.quick else (args.hidden, args.steps)

    digits = load_digits()
    images, labels = digits.train.images.flatten(1).double(), digits.train.labels
    held_out = digits.validation.images.flatten(1).double(), digits.validation.labels
    found = {}
    for variant in ("torchdeq", "deq_kernels", "deq_kernels with SHINE"):
        solver = args.solver
        if variant == "deq_kernels with SHINE":
            solver = "broyden"  # the one of the three that leaves an inverse
        if variant != "torchdeq":
            drop_in.register()
        torch.manual_seed(0)
        try:
            model = Classifier(args.core, solver, hidden).double()
        finally:
            drop_in.unregister()
        if variant == "deq_kernels with SHINE":
            drop_in.set_gradient(model.deq, dk.Shine(fallback=1.3))
        losses, seconds = train(model, images, labels, steps)
        model.eval()
        with torch.no_grad():
            accuracy = (model(held_out[0]).argmax(1) == held_out[1]).double().mean()
        print(
            f"{variant:>22}, {solver}: loss {losses[0]:.4f} to {losses[-1]:.4f}, accuracy "
            f"{accuracy:.1%}, {seconds:.1f} s",
            flush=True,
        )
        found[variant] = losses
    pairs = zip(found["torchdeq"], found["deq_kernels"], strict=True)
    difference = max(abs(theirs - ours) for theirs, ours in pairs)
    print(f"largest difference between the losses of the first two: {difference:.1e}")
    return found


if __name__ == "__main__":
    main()
