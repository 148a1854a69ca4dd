"""Transformer-XL attention: content and relative position, over a memory and the segment."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.models.transformer.config import TransformerConfig
from deq_kernels.models.transformer.positions import distance_mask, relative_shift
from deq_kernels.nn import VariationalDropout, weight_norm

Distances = tuple[Tensor, Tensor]
"""What keys at each distance, in the columns of `relative_shift`, add to a score: the product of a
query with [heads, head_width, L + 1], and [heads, 1, T, L + 1] of their own."""


class RelativeAttention(nn.Module):
    """o = W_o softmax(((q + r_w) Kᵀ + shift((q + r_r) (W_r p)ᵀ)) / √head_width) V.

    [q, k, v] = W c + u for the tokens c of the memory and of the segment, q for those of the
    segment only; p are the features of the distances. A token sees `window` tokens, itself and
    those before it. W, W_r and W_o are weight-normalised, W_o has a bias.

    What the segment's tokens c do not change is computed once, outside of `forward`: `inject` adds
    r_w to the queries' injection, so that queries are q + r_w from then on, `remember` makes keys
    and values of the memory, and `distances` holds W_r p, with (r_r - r_w) (W_r p)ᵀ and the window
    as what is added to (q + r_w) (W_r p)ᵀ.

    The position term is handed to `scaled_dot_product_attention` as an additive mask. The softmax
    is written out with attention dropout in training mode, because the mask of the dropout must
    stay the same during a solve; and on a CPU under autograd, where torch has no fused kernel for
    additive masks that need a gradient.

    Source: Dai et al. 2019, "Transformer-XL", section 3.3; Bai, Kolter and Koltun 2019, "Deep
    Equilibrium Models", appendix.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.heads = heads
        self.head_width = config.head_width
        self.window = config.window
        self.scale = config.head_width**-0.5
        self.qkv = weight_norm(nn.Linear(width, 3 * width, bias=False))
        self.position = weight_norm(nn.Linear(width, width, bias=False))
        self.out = weight_norm(nn.Linear(width, width))
        self.content_bias = nn.Parameter(torch.empty(heads, 1, config.head_width))
        self.position_bias = nn.Parameter(torch.empty(heads, 1, config.head_width))
        self.dropout = VariationalDropout(config.attention_dropout, shared=())
        nn.init.zeros_(self.out.bias)
        nn.init.normal_(self.content_bias, std=config.init_std)
        nn.init.normal_(self.position_bias, std=config.init_std)

    def forward(
        self,
        c: Tensor,
        u: Tensor,
        memory: Tensor | None,
        distances: Distances,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from the segment to the memory and the segment.

        Args:
            c: the segment's tokens [B, T, D], layer-normalised for PreLN.
            u: what `inject` made of their injection, [B, T, 3 D].
            memory: what `remember` gave, or None for an empty memory.
            distances: what `distances` gave for L = M + T.
            mask: of the dropout, [B, heads, T, L]; None: its present one.

        Returns:
            o, [B, T, D].
        """
        width = c.shape[-1]
        # One product with the sum over it, instead of a product and a sum.
        qkv = torch.addmm(u.flatten(0, 1), c.flatten(0, 1), self.qkv.weight.t()).view(u.shape)
        queries, kv = qkv.split((width, 2 * width), dim=-1)
        if memory is not None:
            kv = torch.cat((memory, kv), dim=1)
        q, k, v = (self._split(x) for x in (queries, *kv.chunk(2, dim=-1)))
        bias = self._position_scores(queries, distances)
        on_cpu = bias.device.type == "cpu"
        if self.training and self.dropout.p > 0.0:
            weights = self._weights(q, k, bias)
            attended = (self.dropout(weights) if mask is None else weights * mask) @ v
        elif on_cpu and bias.requires_grad:
            attended = self._weights(q, k, bias) @ v
        else:
            if not on_cpu:  # kernels of GPUs want an aligned mask, and the view begins anywhere
                bias = bias.clone(memory_format=torch.contiguous_format)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def inject(self, u: Tensor) -> Tensor:
        """The injection u [B, T, 3 D] with r_w in it, as `forward` takes it."""
        return u + F.pad(self.content_bias.flatten(), (0, u.shape[-1] - self.content_bias.numel()))

    def remember(self, c: Tensor, u: Tensor) -> Tensor:
        """Keys and values of the memory, [B, M, 2 D], which no evaluation of f changes.

        Args:
            c: the memory's tokens [B, M, D], layer-normalised for PreLN.
            u: their injection [B, M, 3 D].
        """
        width = c.shape[-1]
        return F.linear(c, self.qkv.weight[width:]) + u[..., width:]

    def distances(self, features: Tensor, queries: int) -> Distances:
        """W_r p / √head_width and what is added to its product with a query.

        Args:
            features: p, [L, D].
            queries: T.
        """
        keys: Tensor = self.scale * self.position(features)
        by_head = keys.unflatten(-1, (self.heads, self.head_width)).permute(1, 2, 0)
        own = (self.position_bias - self.content_bias) @ by_head
        mask = distance_mask(queries, len(features), self.window, like=own)
        return F.pad(by_head, (0, 1)), (F.pad(own, (0, 1)) + mask)[:, None]

    def _position_scores(self, q: Tensor, distances: Distances) -> Tensor:
        """The position term of the scores, [B, heads, T, L], -inf for keys that are not seen.

        One product per head, with the queries of all samples.
        """
        by_head, own = distances
        batch, queries = q.shape[:2]
        rows = q.flatten(0, 1).unflatten(-1, (self.heads, self.head_width)).transpose(0, 1)
        scores = torch.bmm(rows, by_head).unflatten(1, (batch, queries)) + own
        return relative_shift(scores).transpose(0, 1)

    def _weights(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        """The softmax of the scores, [B, heads, T, L]."""
        return torch.softmax((self.scale * q @ k.transpose(2, 3)).add_(bias), dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, heads, T, head_width]."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
