"""The map f whose fixed point is the DEQ-Transformer's state: attention, then feed-forward."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.models.transformer.attention import Distances, RelativeAttention
from deq_kernels.models.transformer.config import TransformerConfig
from deq_kernels.models.transformer.memory import Memory
from deq_kernels.models.transformer.positions import position_features
from deq_kernels.nn import VariationalDropout, one_solve, weight_norm


class TransformerCell(nn.Module):
    """f(z): with o the dropped-out attention output and FFN(h) = drop(W2 drop(ReLU(W1 h))),

    - PostLN: h = LN(z + o(z)), f = LN(h + FFN(h));
    - PreLN: h = LN(z + o(LN z)), f = h + FFN(h), the memory normalised like z. (The residual is the
      *normalised* h, as in the authors' code; with z + o(LN z) itself f would hardly contract.)

    LN has no scale or shift. Source: Bai, Koltun and Kolter 2021, "Stabilizing Equilibrium Models
    by Jacobian Regularization", section 5; their code.

    Weight norm and dropout must not change during a solve: run a solve inside `one_solve`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = RelativeAttention(config)
        self.attention_dropout = VariationalDropout(config.dropout, shared=(1,))
        self.widen = weight_norm(nn.Linear(config.width, config.inner_width))
        self.inner_dropout = VariationalDropout(config.dropout, shared=(1,))
        self.narrow = weight_norm(nn.Linear(config.inner_width, config.width))
        self.outer_dropout = VariationalDropout(config.dropout, shared=(1,))
        self.position_dropout = VariationalDropout(config.dropout, shared=(0,))
        nn.init.zeros_(self.widen.bias)
        nn.init.zeros_(self.narrow.bias)

    def forward(
        self,
        z: Tensor,
        u: Tensor,
        memory: Tensor | None,
        distances: Distances,
        masks: tuple[Tensor, ...] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of f.

        Args:
            z: state [B, T, D].
            u: injection of the attention [B, T, 3 D], from `constants`.
            memory: keys and values of the memory, from `constants`.
            distances: position term of the keys, from `constants`.
            masks: of the three dropouts, from `masks`; None: their present ones.
            attention_mask: of the attention's dropout, likewise.

        Returns:
            f(z), [B, T, D].
        """
        pre = self.config.normalization == "pre"
        after_attention, inside, after = (None, None, None) if masks is None else masks
        c = _norm(z) if pre else z
        attended = self.attention(c, u, memory, distances, attention_mask)
        h = _norm(_add(z, self.attention_dropout, attended, after_attention))
        inner = _drop(self.inner_dropout, F.relu(self.widen(h)), inside)
        out = _add(h, self.outer_dropout, self.narrow(inner), after)
        return out if pre else _norm(out)

    def masks(self) -> tuple[tuple[Tensor, ...] | None, Tensor | None]:
        """`masks` and `attention_mask`, each None where nothing is dropped.

        A solver that evaluates f on some of the samples only needs them as inputs of f.
        """
        drops = (self.attention_dropout, self.inner_dropout, self.outer_dropout)
        masks, attention_mask = None, None
        if self.training and self.config.dropout > 0.0:
            masks = tuple(drop.mask for drop in drops if drop.mask is not None)
        if self.training and self.config.attention_dropout > 0.0:
            attention_mask = self.attention.dropout.mask
        return masks, attention_mask

    def constants(
        self, u: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Tensor | None, Distances]:
        """What f takes besides z; computed once per solve, inside `one_solve`.

        Args:
            u: injection of the segment [B, T, 3 D].
            memory: of the tokens before it.

        Returns:
            `u`, `memory` and `distances` as `forward` takes them.
        """
        length = u.shape[1] + (0 if memory is None else memory.length)
        features = position_features(length, self.config.width, like=u)
        distances = self.attention.distances(self.position_dropout(features), u.shape[1])
        injected = self.attention.inject(u)
        if memory is None:
            return injected, None, distances
        c = _norm(memory.z) if self.config.normalization == "pre" else memory.z
        return injected, self.attention.remember(c, memory.u), distances

    @contextmanager
    def one_solve(self, u: Tensor, memory: Memory | None) -> Iterator[None]:
        """Draw the dropout masks, and compute the normalised weights once, for one solve.

        The masks stay after the exit, so a backward pass that evaluates f again sees the same map.
        The weights: `deq_kernels.nn.one_solve`.

        Args:
            u: injection [B, T, 3 D], whose batch size, length, dtype and device the masks take.
            memory: whose length the attention mask takes.

        Raises:
            RuntimeError: an enclosing parametrize.cached() holds weights without a graph.
        """
        batch, length = u.shape[:2]
        width, inner_width, heads = self.config.width, self.config.inner_width, self.config.heads
        keys = length + (0 if memory is None else memory.length)
        for dropout, sizes in (
            (self.attention_dropout, (batch, width)),
            (self.inner_dropout, (batch, inner_width)),
            (self.outer_dropout, (batch, width)),
            (self.position_dropout, (width,)),
            (self.attention.dropout, (batch, heads, length, keys)),
        ):
            dropout.resample(*sizes, dtype=u.dtype, device=u.device)
        with one_solve(self):
            yield


def _drop(dropout: VariationalDropout, x: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = dropout(x) if mask is None else x * mask
    return out


def _add(residual: Tensor, dropout: VariationalDropout, x: Tensor, mask: Tensor | None) -> Tensor:
    """residual + x times the mask."""
    if mask is None:
        return residual + _drop(dropout, x, None)
    return torch.addcmul(residual, x, mask)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
