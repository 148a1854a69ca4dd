"""The map f whose fixed point is the DEQ-Transformer's state: attention, then feed-forward."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels.models.transformer.attention import KeysAndValues, RelativeAttention
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
        self, z: Tensor, u: Tensor, memory: KeysAndValues | None, distance_keys: Tensor
    ) -> Tensor:
        """One evaluation of f.

        Args:
            z: state [B, T, D].
            u: injection [B, T, 3 D].
            memory: keys and values of the memory, from `constants`.
            distance_keys: position term of the keys, from `constants`.

        Returns:
            f(z), [B, T, D].
        """
        pre = self.config.normalization == "pre"
        attended = self.attention(_norm(z) if pre else z, u, memory, distance_keys)
        h = _norm(z + self.attention_dropout(attended))
        inner = self.inner_dropout(F.relu(self.widen(h)))
        out = h + self.outer_dropout(self.narrow(inner))
        return out if pre else _norm(out)

    def constants(self, u: Tensor, memory: Memory | None) -> tuple[KeysAndValues | None, Tensor]:
        """What f takes besides z and u; computed once per solve, inside `one_solve`.

        Args:
            u: injection of the segment [B, T, 3 D].
            memory: of the tokens before it.

        Returns:
            The memory's keys and values, and the position term of all keys.
        """
        length = u.shape[1] + (0 if memory is None else memory.length)
        features = position_features(length, self.config.width, like=u)
        distance_keys = self.attention.distance_keys(self.position_dropout(features))
        if memory is None:
            return None, distance_keys
        c = _norm(memory.z) if self.config.normalization == "pre" else memory.z
        return self.attention.remember(c, memory.u), distance_keys

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


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
