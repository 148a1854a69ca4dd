"""The DEQ-Transformer language model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deq_kernels.gradients import Gradient, Implicit
from deq_kernels.layer import DEQ
from deq_kernels.models.transformer.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from deq_kernels.models.transformer.cell import TransformerCell
from deq_kernels.models.transformer.config import TransformerConfig
from deq_kernels.models.transformer.memory import Memory
from deq_kernels.nn import VariationalDropout
from deq_kernels.solvers import Anderson, Broyden, Solution, Solver

FORWARD_STEPS, BACKWARD_STEPS = 30, 35
"""Of the published PostLN model; those trained with Jacobian regularisation took 14 at most."""
PUBLISHED_RTOL = 1e-3


@dataclass(frozen=True, kw_only=True)
class TransformerOutput:
    """What a DEQ-Transformer makes of one segment.

    Attributes:
        hidden: [B, T, D], the equilibrium after dropout.
        memory: for the next segment of the same streams; None if the config keeps none.
        nll: -log p(target) [B, T] in nats, if there were targets.
    """

    hidden: Tensor
    memory: Memory | None
    nll: Tensor | None


class DEQTransformer(nn.Module):
    """Transformer-XL of one layer, iterated to its equilibrium (Bai, Kolter and Koltun, 2019).

    The tokens' embeddings are injected into the queries, keys and values, u = W_u x + b; the
    equilibrium z = f(z, u) of `TransformerCell` is solved from zero, one segment of T tokens per
    sample; the adaptive softmax scores the next tokens. The memory of earlier segments enters as
    keys and values that the solve leaves as they are.

    Args:
        config: the architecture, e.g. `TransformerConfig.preset("wikitext103_base")`.
        solver: forward solver; default Anderson with at most 30 evaluations and the published
            relative tolerance 1e-3.
        gradient: how the gradient passes the equilibrium; default `Implicit` with Broyden, at most
            35 steps and the same tolerance.
        eval_solver: forward solver in eval mode; default `solver`.
        warm_start: passed to `DEQ`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        if solver is None:
            solver = Anderson(max_steps=FORWARD_STEPS, rtol=PUBLISHED_RTOL)
        if gradient is None:
            backward = Broyden(max_steps=BACKWARD_STEPS, rtol=PUBLISHED_RTOL)
            gradient = Implicit(solver=backward)
        self.config = config
        self.embedding = AdaptiveEmbedding(config)
        self.input_dropout = VariationalDropout(config.dropout, shared=(1,))
        self.inject = nn.Linear(config.width, 3 * config.width)
        self.deq = DEQ(
            TransformerCell(config),
            solver=solver,
            gradient=gradient,
            eval_solver=eval_solver,
            warm_start=warm_start,
            per_sample=(0, 1, 3, 4),
        )
        self.output_dropout = VariationalDropout(config.dropout, shared=(1,))
        self.softmax = AdaptiveSoftmax(config, self.embedding)
        nn.init.normal_(self.inject.weight, std=config.init_std)
        nn.init.zeros_(self.inject.bias)

    @property
    def cell(self) -> TransformerCell:
        """The map f whose fixed point is the state."""
        cell = self.deq.cell
        assert isinstance(cell, TransformerCell)
        return cell

    @property
    def last_solution(self) -> Solution | None:
        """How the last equilibrium was found (see `DEQ.last_solution`)."""
        return self.deq.last_solution

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        memory: Memory | None = None,
        pretrain_steps: int | None = None,
    ) -> TransformerOutput:
        """One segment of each stream.

        Args:
            tokens: [B, T] int64, T at least 1; usually `config.segment`, and any other works.
            targets: the tokens after those, [B, T] int64; None to get no `nll`.
            memory: what the call for the segment before returned; None at the start.
            pretrain_steps: if given, apply the cell this many times from zero and differentiate
                through all of them, instead of solving for the equilibrium.

        Returns:
            See `TransformerOutput`.

        Raises:
            TypeError: tokens or targets are not int64.
            ValueError: a shape is wrong, or `pretrain_steps` is below 1.
        """
        self._check(tokens, targets, memory)
        if pretrain_steps is not None and pretrain_steps < 1:
            raise ValueError(f"pretrain_steps must be at least 1, got {pretrain_steps}")
        x = self.embedding(tokens)
        batch, _, width = x.shape
        for dropout in (self.input_dropout, self.output_dropout):
            dropout.resample(batch, width, dtype=x.dtype, device=x.device)
        u = self.inject(self.input_dropout(x))
        # Under autocast x may be in half precision; the state stays in that of the parameters.
        z = torch.zeros_like(x, dtype=self.inject.weight.dtype)
        with self.cell.one_solve(u, memory):
            arguments = (*self.cell.constants(u, memory), *self.cell.masks())
            if pretrain_steps is None:
                z = self.deq(z, *arguments)
            else:
                for _ in range(pretrain_steps):
                    z = self.cell(z, *arguments)
        hidden = self.output_dropout(z)
        nll = None
        if targets is not None:
            nll = self.softmax(hidden, targets, list(self.embedding.tables))
        return TransformerOutput(
            hidden=hidden,
            memory=Memory.after(memory, z, u, length=self.config.memory),
            nll=nll,
        )

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """log p of every next token, [..., D] to [..., vocabulary]."""
        return self.softmax.log_probabilities(hidden, list(self.embedding.tables))

    def _check(self, tokens: Tensor, targets: Tensor | None, memory: Memory | None) -> None:
        for name, given in (("tokens", tokens), ("targets", targets)):
            if given is None:
                continue
            if given.dtype != torch.int64:
                raise TypeError(f"{name} must be int64 token numbers; got {given.dtype}.")
            if given.dim() != 2 or not given.shape[1] or given.shape != tokens.shape:
                raise ValueError(
                    f"tokens and targets must be [B, T] with T at least 1, and alike; got {name} "
                    f"{list(given.shape)} with tokens {list(tokens.shape)}."
                )
        if memory is not None and (
            memory.z.shape[0] != tokens.shape[0] or memory.z.shape[2] != self.config.width
        ):
            raise ValueError(
                f"the memory must be [{tokens.shape[0]}, M, {self.config.width}], of the same "
                f"streams as the tokens; got {list(memory.z.shape)}. Start anew with memory=None."
            )
