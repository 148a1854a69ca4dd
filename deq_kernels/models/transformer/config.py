"""The shape of a DEQ-Transformer, and the published shapes as presets."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from deq_kernels.options import check_choice, check_count, check_number, check_positive

Normalization = Literal["post", "pre"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Architecture of a DEQ-Transformer.

    The state of one sample is [segment, width]. Its token i attends to the tokens from
    i - window + 1 to i, those before the segment being taken from the memory.

    Args:
        vocabulary: number of tokens, the most frequent first.
        width: D, features per token; even, and a multiple of `heads`.
        heads: of the attention, each with width / heads features.
        inner_width: of the feed-forward layer.
        segment: T, tokens that are solved for together.
        memory: M, tokens before the segment whose equilibrium is kept; 0 for none.
        window: tokens that a token sees, itself included.
        cutoffs: first tokens of the second, third, ... cluster of the adaptive embedding and
            softmax, increasing; () for one cluster.
        divisor: embeddings of cluster i (from 0) have width // divisor^i features.
        normalization: "post" for PostLN, "pre" for PreLN (see `TransformerCell`).
        dropout: probability of the variational dropout of embeddings, positions, attention output,
            feed-forward layer and output.
        attention_dropout: probability of dropping an attention weight; above 0, attention in
            training mode does without the fused kernels, which take no fixed mask.
        init_std: standard deviation of the weights that are not weight-normalised, at the start.

    Raises:
        ValueError: numbers out of their range, or sizes that do not fit each other.
    """

    vocabulary: int
    width: int
    heads: int
    inner_width: int
    segment: int
    memory: int
    window: int = 1000
    cutoffs: tuple[int, ...] = ()
    divisor: int = 4
    normalization: Normalization = "post"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.01

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_count(name, getattr(self, name))
        if self.memory != 0:
            check_count("memory", self.memory)
        for name in ("dropout", "attention_dropout"):
            check_number(name, getattr(self, name), lambda x: 0 <= x < 1, "at least 0 and below 1")
        check_positive("init_std", self.init_std)
        check_choice("normalization", self.normalization, get_args(Normalization))
        if self.width % 2 or self.width % self.heads:
            raise ValueError(
                f"width must be even and a multiple of heads = {self.heads}; got {self.width}. "
                "Half of the position features are sines, and each head takes an equal share."
            )
        bounds = (0, *self.cutoffs, self.vocabulary)
        if not all(isinstance(bound, int) and low < bound for low, bound in pairwise(bounds)):
            raise ValueError(
                "cutoffs must be whole numbers, increasing, above 0 and below vocabulary = "
                f"{self.vocabulary}; got {self.cutoffs}."
            )
        if self.embedding_widths[-1] < 1:
            raise ValueError(
                f"embeddings of the last cluster must have a feature; got width {self.width} // "
                f"divisor {self.divisor}^{len(self.cutoffs)} = 0. Use fewer cutoffs, or a smaller "
                "divisor."
            )

    @property
    def head_width(self) -> int:
        """Features per attention head."""
        return self.width // self.heads

    @property
    def clusters(self) -> tuple[range, ...]:
        """The tokens of each cluster of the vocabulary."""
        return tuple(range(*pair) for pair in pairwise((0, *self.cutoffs, self.vocabulary)))

    @property
    def embedding_widths(self) -> tuple[int, ...]:
        """Features of an embedding in each cluster, before its projection to `width`."""
        return tuple(self.width // self.divisor**i for i in range(len(self.cutoffs) + 1))

    @property
    def state_dim(self) -> int:
        """Dimension d of the equilibrium problem of one sample."""
        return self.segment * self.width

    @staticmethod
    def preset(name: str) -> "TransformerConfig":
        """One of the shapes in `PRESETS`.

        Raises:
            ValueError: no preset has this name.
        """
        if name not in PRESETS:
            raise ValueError(
                f"no DEQ-Transformer preset is called {name!r}; there are {', '.join(PRESETS)}"
            )
        return PRESETS[name]


_COUNTS = (
    "vocabulary",
    "width",
    "heads",
    "inner_width",
    "segment",
    "window",
    "divisor",
)


def _wikitext103(**options: object) -> TransformerConfig:
    published: dict[str, object] = {
        "vocabulary": 267_735,
        "width": 700,
        "heads": 10,
        "inner_width": 48_000,
        "segment": 150,
        "memory": 150,
        "cutoffs": (20_000, 40_000, 200_000),
        "dropout": 0.05,
    }
    return TransformerConfig(**(published | options))  # type: ignore[arg-type]  # values of many types


PRESETS: dict[str, TransformerConfig] = {
    "pydoc": TransformerConfig(
        vocabulary=2_500,
        width=96,
        heads=4,
        inner_width=384,
        segment=32,
        memory=32,
        dropout=0.3,
        init_std=0.05,
        normalization="pre",
    ),
    "wikitext103_base": _wikitext103(),
    "wikitext103_jr": _wikitext103(memory=300, dropout=0.06, attention_dropout=0.01),
    "wikitext103_preln_jr": _wikitext103(
        normalization="pre", memory=300, dropout=0.06, attention_dropout=0.01
    ),
}
