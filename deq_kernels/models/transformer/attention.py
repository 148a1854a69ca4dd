"""Transformer-XL attention: content and relative position, over a memory and the segment."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.models.transformer.config import TransformerConfig
from deq_kernels.models.transformer.positions import relative_shift, visible_keys
from deq_kernels.nn import VariationalDropout, weight_norm

KeysAndValues = tuple[Tensor, Tensor]
"""Of the memory, each [B, heads, M, head_width]."""


class RelativeAttention(nn.Module):
    """o = W_o softmax(((q + r_w) Kᵀ + shift((q + r_r) (W_r p)ᵀ)) / √head_width) V.

    [q, k, v] = W c + u for the tokens c of the memory and of the segment, q for those of the
    segment only; p are the features of the distances. A token sees `window` tokens, itself and
    those before it. W, W_r and W_o are weight-normalised, W_o has a bias.

    The position term is handed to `scaled_dot_product_attention` as an additive mask. With
    attention dropout in training mode the softmax is written out, because the mask of the dropout
    must stay the same during a solve.

    Source: Dai et al. 2019, "Transformer-XL", section 3.3; Bai, Kolter and Koltun 2019, "Deep
    Equilibrium Models", appendix.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.heads = heads
        self.head_width = config.head_width
        self.window = config.window
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
        self, c: Tensor, u: Tensor, memory: KeysAndValues | None, distance_keys: Tensor
    ) -> Tensor:
        """Attend from the segment to the memory and the segment.

        Args:
            c: the segment's tokens [B, T, D], layer-normalised for PreLN.
            u: their injection [B, T, 3 D].
            memory: what `remember` gave, or None for an empty memory.
            distance_keys: what `distance_keys` gave for L = M + T, [heads, L, head_width].

        Returns:
            o, [B, T, D].
        """
        q, k, v = map(self._split, (self.qkv(c) + u).chunk(3, dim=-1))
        if memory is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(memory, (k, v), strict=True))
        scale = self.head_width**-0.5
        visible = visible_keys(q.shape[2], k.shape[2], self.window, device=q.device)
        by_distance = (q + self.position_bias) @ distance_keys.transpose(1, 2)
        bias = (scale * relative_shift(by_distance)).masked_fill(~visible, -torch.inf)
        q = q + self.content_bias
        if self.training and self.dropout.p > 0.0:
            weights = self.dropout(torch.softmax(scale * (q @ k.transpose(2, 3)) + bias, dim=-1))
            attended = weights @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def remember(self, c: Tensor, u: Tensor) -> KeysAndValues:
        """Keys and values of the memory, which no evaluation of f changes.

        Args:
            c: the memory's tokens [B, M, D], layer-normalised for PreLN.
            u: their injection [B, M, 3 D].
        """
        width = c.shape[-1]
        k, v = (F.linear(c, self.qkv.weight[width:]) + u[..., width:]).chunk(2, dim=-1)
        return self._split(k), self._split(v)

    def distance_keys(self, features: Tensor) -> Tensor:
        """W_r p per head, from p [L, D] to [heads, L, head_width]."""
        keys: Tensor = self.position(features)
        return keys.unflatten(-1, (self.heads, self.head_width)).transpose(0, 1)

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, heads, T, head_width]."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
