"""What is recorded of the models: one step of gradient descent, on made-up data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deq_kernels as dk
from deq_kernels.models import IGNN, MDEQ, DEQTransformer, IGNNConfig, MDEQConfig, TransformerConfig
from python_tests.bits.solves import Case
from python_tests.bits.values import digest, pattern

TRANSFORMER = TransformerConfig(
    vocabulary=20,
    width=8,
    heads=2,
    inner_width=16,
    segment=5,
    memory=5,
    cutoffs=(12,),
    divisor=2,
    init_std=0.3,
)


def model_cases() -> Iterator[Case]:
    """MDEQ of the digits, the transformer, IGNN on chains."""
    backward = dk.Broyden(max_steps=6, rtol=1e-3)
    for name, gradient in {"shine": dk.Shine(), "implicit": dk.Implicit(solver=backward)}.items():
        torch.manual_seed(0)
        mdeq = MDEQ(
            MDEQConfig.preset("digits"),
            solver=dk.Broyden(max_steps=6, rtol=1e-3),
            gradient=gradient,
        )
        config = mdeq.config
        images = pattern(4, config.image_channels, *config.image_size, dtype=torch.float32)
        yield f"models/mdeq/{name}", _trained(mdeq, partial(_loss_of_images, mdeq, images))
    torch.manual_seed(0)
    transformer = DEQTransformer(TRANSFORMER)
    tokens = torch.arange(15).reshape(3, 5) * 7 % 20
    yield (
        "models/transformer",
        _trained(transformer, lambda: _mean(transformer(tokens, (tokens + 3) % 20).nll)),
    )
    torch.manual_seed(0)
    ignn = IGNN(IGNNConfig.preset("chains"))
    yield "models/ignn/chains", _trained(ignn, lambda: _of_classes(ignn(_chains())))


def _chains() -> SimpleNamespace:
    """Eight chains of ten nodes; the first one's feature tells the class."""
    nodes = torch.arange(80).reshape(8, 10)
    x = torch.zeros(80, 100)
    x[nodes[:, 0], torch.arange(8) % 2] = 1.0
    edges = torch.stack([nodes[:, :-1].reshape(-1), nodes[:, 1:].reshape(-1)])
    return SimpleNamespace(edge_index=edges, x=x, num_nodes=80, ptr=torch.arange(0, 81, 10))


def _loss_of_images(mdeq: MDEQ, images: Tensor) -> Tensor:
    return _of_classes(mdeq(images))


def _of_classes(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores, torch.arange(len(scores)) % scores.shape[1])


def _mean(nll: Tensor | None) -> Tensor:
    assert nll is not None
    return nll.mean()


def _trained(model: nn.Module, loss_of: Callable[[], Tensor]) -> dict[str, str]:
    """Digests of the loss before and after a step, and of the gradient."""
    before = loss_of()
    before.backward()
    gradients = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    with torch.no_grad():
        after = loss_of()
    return {
        "before": digest(before),
        "gradient": digest(torch.cat(gradients)),
        "after": digest(after),
    }
