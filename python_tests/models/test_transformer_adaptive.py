"""Adaptive embedding and softmax against dense tables, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deq_kernels.models import TransformerConfig
from deq_kernels.models.transformer.adaptive import AdaptiveEmbedding, AdaptiveSoftmax

CUTOFFS = [(), (7,), (5, 11)]


def _modules(cutoffs: tuple[int, ...]) -> tuple[AdaptiveEmbedding, AdaptiveSoftmax]:
    config = TransformerConfig(
        vocabulary=20,
        width=8,
        heads=2,
        inner_width=4,
        segment=4,
        memory=0,
        cutoffs=cutoffs,
        divisor=2,
    )
    embedding = AdaptiveEmbedding(config).double()
    softmax = AdaptiveSoftmax(config, embedding).double()
    for parameter in (*embedding.parameters(), *softmax.parameters()):
        nn.init.normal_(parameter)
    return embedding, softmax


def _dense_log_softmax(embedding: AdaptiveEmbedding, softmax: AdaptiveSoftmax, h: Tensor) -> Tensor:
    """log p [20] of one position, cluster by cluster."""
    logits = [
        table @ (projection.weight @ h) + bias
        for table, projection, bias in zip(
            embedding.tables, softmax.projections, softmax.biases, strict=True
        )
    ]
    projected = softmax.projections[0].weight @ h
    head = torch.cat((logits[0], softmax.cluster_weight @ projected + softmax.cluster_bias))
    head = head - head.logsumexp(0)
    parts = [head[: len(logits[0])]]
    for i, tail in enumerate(logits[1:]):
        parts.append(head[len(logits[0]) + i] + tail - tail.logsumexp(0))
    return torch.cat(parts)


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_embedding_is_a_table(cutoffs: tuple[int, ...]) -> None:
    embedding, _ = _modules(cutoffs)
    rows = [
        table @ projection.weight.T
        for table, projection in zip(embedding.tables, embedding.projections, strict=True)
    ]
    tokens = torch.tensor([[0, 19, 6, 7], [11, 10, 5, 4]])
    torch.testing.assert_close(embedding(tokens), 8**0.5 * torch.cat(rows)[tokens])


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_softmax_is_its_formula(cutoffs: tuple[int, ...]) -> None:
    embedding, softmax = _modules(cutoffs)
    hidden = torch.randn(2, 10, 8, dtype=torch.float64)
    targets = torch.randperm(20).view(2, 10)
    dense = torch.stack(
        [_dense_log_softmax(embedding, softmax, h) for h in hidden.flatten(0, 1)]
    ).view(2, 10, 20)
    torch.testing.assert_close(dense.exp().sum(-1), torch.ones(2, 10, dtype=torch.float64))
    tables = list(embedding.tables)
    torch.testing.assert_close(softmax.log_probabilities(hidden, tables), dense)
    expected = -dense.gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(softmax(hidden, targets, tables), expected)


@pytest.mark.parametrize("only", [0, 2])
def test_targets_of_one_cluster(only: int) -> None:
    embedding, softmax = _modules((5, 11))
    targets = torch.arange(*((0, 5), (5, 11), (11, 20))[only])
    hidden = torch.randn(len(targets), 8, dtype=torch.float64)
    nll = softmax(hidden, targets, list(embedding.tables))
    dense = softmax.log_probabilities(hidden, list(embedding.tables))
    torch.testing.assert_close(nll, -dense[torch.arange(len(targets)), targets])


def test_gradients() -> None:
    embedding, softmax = _modules((5, 11))
    tokens = torch.tensor([3, 17, 6])
    parameters = (*embedding.parameters(), *softmax.parameters())

    def evaluate(*parameters: Tensor) -> Tensor:
        return softmax(embedding(tokens), torch.tensor([12, 0, 7]), list(embedding.tables))

    assert torch.autograd.gradcheck(evaluate, parameters, fast_mode=True)


def test_projections_of_rare_tokens_start_as_those_of_the_embedding() -> None:
    config = TransformerConfig(
        vocabulary=20, width=8, heads=2, inner_width=4, segment=4, memory=0, cutoffs=(5,)
    )
    embedding = AdaptiveEmbedding(config)
    softmax = AdaptiveSoftmax(config, embedding)
    assert torch.equal(softmax.projections[1].weight, embedding.projections[1].weight.T)
    assert not torch.equal(softmax.projections[0].weight, embedding.projections[0].weight.T)
