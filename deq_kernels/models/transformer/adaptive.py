"""Adaptive embedding and softmax: rare tokens have narrow embeddings, and share a head entry.

torch.nn.AdaptiveLogSoftmaxWithLoss will not do: it has no biases for rare tokens, no projection
before the frequent ones, and keeps weights of its own, which cannot be the embeddings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.models.transformer.config import TransformerConfig


class AdaptiveEmbedding(nn.Module):
    """x = √D P_i E_i[token] for a token of cluster i (Baevski and Auli 2019, section 3).

    E_i [size of the cluster, D // divisor^i], P_i [D, D // divisor^i].
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.scale = config.width**0.5
        self.clusters = config.clusters
        self.tables = nn.ParameterList(
            torch.empty(len(tokens), width)
            for tokens, width in zip(self.clusters, config.embedding_widths, strict=True)
        )
        self.projections = nn.ModuleList(
            nn.Linear(width, config.width, bias=False) for width in config.embedding_widths
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=config.init_std)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] int64 to [..., D].

        Every cluster is looked up for every token, and `where` chooses: the projections of the
        narrow clusters cost little, and no device has to report how many tokens each one got.
        """
        x: Tensor | None = None
        for cluster, table, projection in zip(
            self.clusters, self.tables, self.projections, strict=True
        ):
            index = (tokens - cluster.start).clamp(0, len(cluster) - 1)
            embedded: Tensor = projection(F.embedding(index, table))
            x = embedded if x is None else embedded.where((tokens >= cluster.start)[..., None], x)
        assert x is not None
        return self.scale * x


class AdaptiveSoftmax(nn.Module):
    """log p(token) = log p(cluster | h) + log p(token | cluster, h) with the embedding's tables.

    The head is a softmax over the tokens of cluster 0 and one entry per other cluster, with the
    logits [E_0; C] Q_0 h + b; each other cluster i is a softmax with the logits E_i Q_i h + b_i
    (Grave et al. 2017, section 4; tied as in Baevski and Auli 2019). The Q_i are parameters of
    their own; those of the clusters after the first start as the embedding's P_iᵀ.
    """

    def __init__(self, config: TransformerConfig, embedding: AdaptiveEmbedding) -> None:
        super().__init__()
        self.clusters = config.clusters
        self.projections = nn.ModuleList(
            nn.Linear(config.width, width, bias=False) for width in config.embedding_widths
        )
        self.biases = nn.ParameterList(torch.zeros(len(cluster)) for cluster in self.clusters)
        others = len(self.clusters) - 1
        self.cluster_weight = nn.Parameter(torch.empty(others, config.embedding_widths[0]))
        self.cluster_bias = nn.Parameter(torch.zeros(others))
        self.starts: Tensor
        starts = torch.tensor([cluster.start for cluster in self.clusters[1:]], dtype=torch.int64)
        self.register_buffer("starts", starts, persistent=False)
        nn.init.normal_(self.cluster_weight, std=config.init_std)
        nn.init.normal_(_weight(self.projections[0]), std=config.init_std)
        with torch.no_grad():
            pairs = zip(self.projections, embedding.projections, strict=True)
            for mine, theirs in list(pairs)[1:]:
                _weight(mine).copy_(_weight(theirs).T)

    def forward(self, hidden: Tensor, targets: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """-log p(target) of each position.

        The tails are computed for their own targets only, so with several clusters the host waits
        for the device once, to learn how many there are; PyTorch's AdaptiveLogSoftmaxWithLoss waits
        as well.

        Args:
            hidden: h [..., D].
            targets: [...] int64.
            tables: the embedding's tables E_i.

        Returns:
            [...], in nats.
        """
        h, flat = hidden.flatten(0, -2), targets.flatten()
        cluster = torch.bucketize(flat, self.starts, right=True)
        head_size = len(self.clusters[0])
        head_targets = torch.where(cluster == 0, flat, head_size + cluster - 1)
        nll = F.cross_entropy(self._head(h, tables), head_targets, reduction="none")
        if len(self.clusters) > 1:
            order = cluster.argsort(stable=True)
            numbers = torch.arange(len(self.clusters), device=cluster.device)
            counts = (cluster == numbers[:, None]).sum(1).tolist()
            for i, chosen in enumerate(order.split(counts)):
                if i > 0 and len(chosen):
                    logits = self._tail(i, h[chosen], tables)
                    targets_i = flat[chosen] - self.clusters[i].start
                    tail = F.cross_entropy(logits, targets_i, reduction="none")
                    nll = nll.index_add(0, chosen, tail)
        return nll.view(targets.shape)

    def log_probabilities(self, hidden: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """log p of every token, [..., D] to [..., vocabulary]."""
        head = self._head(hidden, tables).log_softmax(-1)
        parts = [head[..., : len(self.clusters[0])]]
        for i in range(1, len(self.clusters)):
            tail = self._tail(i, hidden, tables).log_softmax(-1)
            parts.append(head[..., len(self.clusters[0]) + i - 1, None] + tail)
        return torch.cat(parts, -1)

    def _head(self, h: Tensor, tables: Sequence[Tensor]) -> Tensor:
        weight = torch.cat((tables[0], self.cluster_weight))
        bias = torch.cat((self.biases[0], self.cluster_bias))
        return F.linear(self.projections[0](h), weight, bias)

    def _tail(self, i: int, h: Tensor, tables: Sequence[Tensor]) -> Tensor:
        return F.linear(self.projections[i](h), tables[i], self.biases[i])


def _weight(projection: nn.Module) -> Tensor:
    assert isinstance(projection, nn.Linear)
    return projection.weight
