"""Forward and backward time of one batch under each gradient estimator."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.models.mdeq import MDEQ
from deq_kernels.threads import use_threads
from deq_kernels.training.choices import build_model
from deq_kernels.training.config import GRADIENTS, TrainingConfig

ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class GradientTiming:
    """One batch under one estimator.

    Attributes:
        gradient: its name.
        forward_seconds, backward_seconds: medians over the rounds.
        cosine: between its gradient over all parameters and the implicit one.
    """

    gradient: str
    forward_seconds: float
    backward_seconds: float
    cosine: float


def compare_gradients(
    model: MDEQ,
    config: TrainingConfig,
    batch: tuple[Tensor, Tensor],
    *,
    rounds: int = ROUNDS,
) -> list[GradientTiming]:
    """Time every estimator on one batch, with the same weights and the same dropout masks.

    The estimators take turns, so that a slow phase of the machine hits all of them; a first,
    untimed round warms up.

    Args:
        model: the trained model; it is copied.
        config: that the model was trained with; its solver and threads are used for all.
        batch: images [B, C, H, W] and labels [B].
        rounds: timed passes per estimator.

    Raises:
        ValueError: the config's solver leaves no inverse Jacobian, which one of them needs.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in GRADIENTS}
    with torch.random.fork_rng(devices=[]), use_threads(config.threads):
        models = {name: _copy(model, config, gradient=name) for name in GRADIENTS}
        for _ in range(rounds + 1):
            for name, copy in models.items():
                torch.manual_seed(config.seed)
                times[name].append(_time_batch(copy, batch))
    gradients = {name: _flat_gradient(copy) for name, copy in models.items()}
    return [
        GradientTiming(
            gradient=name,
            forward_seconds=_median([forward for forward, _ in times[name]]),
            backward_seconds=_median([backward for _, backward in times[name]]),
            cosine=float(F.cosine_similarity(gradients[name], gradients["implicit"], dim=0)),
        )
        for name in GRADIENTS
    ]


def _copy(model: MDEQ, config: TrainingConfig, *, gradient: str) -> MDEQ:
    # What belongs to one estimator only goes back to its default.
    copy = build_model(replace(config, gradient=gradient, gradient_steps=None, damping=None))
    copy.load_state_dict(model.state_dict())
    return copy.train()


def _time_batch(model: MDEQ, batch: tuple[Tensor, Tensor]) -> tuple[float, float]:
    images, labels = batch
    model.zero_grad()
    start = time.perf_counter()
    loss = F.cross_entropy(model(images), labels)
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - middle


def _median(seconds: Sequence[float]) -> float:
    return median(seconds[1:])


def _flat_gradient(model: MDEQ) -> Tensor:
    gradients = [parameter.grad for parameter in model.parameters()]
    return torch.cat(
        [gradient.flatten().double() for gradient in gradients if gradient is not None]
    )
