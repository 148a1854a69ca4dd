"""The shape of an IGNN, and the published shapes as presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deq_kernels.models.ignn.graphs import Graphs
from deq_kernels.options import check_choice, check_count, check_flag, check_number

TARGETS = ("graphs", "nodes")
NORMS = ("rows", "l2", "max")
CELLS = ("auto", "structured", "generic")
LOCAL_INJECTIONS = ("none", "held", "trained")
POOLINGS = ("sum", "mean", "max")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "elu", "softplus", "identity")
"""Those with slopes of at most 1, as well-posedness needs."""


@dataclass(frozen=True, kw_only=True)
class IGNNConfig:
    """Architecture of an implicit graph network.

    Args:
        features: p, numbers per node; the number of nodes where nodes have unit vectors.
        outputs: scores per graph or node.
        target: "graphs", pooled and classified by Linear, ReLU, dropout, Linear; or "nodes".
        widths: m of each implicit layer.
        normalized: whether A is (D + I)^(-1/2) (A + I) (D + I)^(-1/2), or the graph's own.
        kappa: κ, above 0 and below 1: ‖W‖_∞ ≤ κ / ρ(|A|).
        activation: φ inside the layers: relu, tanh, sigmoid, elu, softplus or identity.
        local_injection: B = Ω U A with "none"; with "trained" B = Ω U A + Ω₂ U + b 1ᵀ. The
            published code has Ω₂ and b, which its counts include, and does not use them: "held" is
            that, for counts and state dicts. They are frozen then, and have no effect.
        skips: whether layers are joined as x ← ELU(layer(x) + V x + c), the last one without ELU.
        pooling: of a graph's nodes: "sum", "mean" or "max". Only for graphs.
        unit_states: whether the last states are divided by their 2-norms. Only for nodes.
        head: whether the last states go through dropout and a Linear without bias; else they are
            the scores. Only for nodes.
        dropout: probability in the head.
        cell: "auto", every solve in one op where the solver and the gradient have that
            (`deq_kernels.cells.StructuredCell`); "structured", likewise, and others are refused;
            "generic", every solve step by step. The answer is the same.
        norm: what tolerances are of, where a solve is one op (`deq_kernels.cells.GraphCell`):
            "rows", each node for itself; "l2"; or "max", which is the published rule with rtol=0
            and atol=3e-6, and leaves nodes with small states inaccurate. Step by step a graph's
            2-norm is measured.

    Raises:
        ValueError: an option is out of its range, or does not go with another one.
    """

    features: int
    outputs: int
    target: str
    widths: tuple[int, ...]
    normalized: bool = True
    kappa: float = 0.9
    activation: str = "relu"
    local_injection: str = "none"
    skips: bool = False
    pooling: str = "sum"
    unit_states: bool = False
    head: bool = True
    dropout: float = 0.5
    cell: str = "auto"
    norm: str = "rows"

    def __post_init__(self) -> None:
        for name in ("features", "outputs"):
            check_count(name, getattr(self, name))
        if not isinstance(self.widths, tuple) or not self.widths:
            raise ValueError(f"widths must be a tuple, one number per layer; got {self.widths!r}.")
        for width in self.widths:
            check_count("widths", width)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("normalized", "skips", "unit_states", "head"):
            check_flag(name, getattr(self, name))
        check_number("kappa", self.kappa, lambda x: 0 < x < 1, "above 0 and below 1")
        check_number("dropout", self.dropout, lambda x: 0 <= x < 1, "at least 0 and below 1")
        self._check_target()

    def _check_target(self) -> None:
        if self.target == "graphs" and (self.unit_states or not self.head):
            raise ValueError(
                'unit_states and head=False belong to target="nodes"; got target="graphs", whose '
                "head is made of two layers. Leave them out."
            )
        if self.target == "nodes" and self.pooling != "sum":
            raise ValueError(
                f'pooling belongs to target="graphs"; got pooling={self.pooling!r} for nodes. '
                "Leave it out."
            )
        if not self.head and self.widths[-1] != self.outputs:
            raise ValueError(
                "Without a head the last layer must be as wide as there are outputs, "
                f"{self.outputs}; got widths {self.widths}."
            )

    def prepare(self, graphs: Graphs | Any) -> Graphs:
        """What the model takes, from graphs as they are loaded: A is normalised if it is to be.

        Args:
            graphs: `Graphs`, or a `Data` or `Batch` of torch_geometric (`Graphs.from_geometric`).
        """
        if not isinstance(graphs, Graphs):
            graphs = Graphs.from_geometric(graphs)
        return graphs.normalized() if self.normalized else graphs

    @staticmethod
    def preset(name: str) -> IGNNConfig:
        """One of the shapes in `PRESETS`.

        Raises:
            ValueError: no preset has this name.
        """
        if name not in PRESETS:
            raise ValueError(f"no IGNN preset is called {name!r}; there are {', '.join(PRESETS)}")
        return PRESETS[name]


_CHOICES = {
    "target": TARGETS,
    "activation": ACTIVATIONS,
    "local_injection": LOCAL_INJECTIONS,
    "pooling": POOLINGS,
    "cell": CELLS,
    "norm": NORMS,
}

PRESETS: dict[str, IGNNConfig] = {
    "chains": IGNNConfig(
        features=100, outputs=2, target="nodes", widths=(16,), unit_states=True, kappa=0.9
    ),
    "karate": IGNNConfig(
        features=34, outputs=2, target="nodes", widths=(16,), unit_states=True, kappa=0.9
    ),
    "cox2": IGNNConfig(
        features=35, outputs=2, target="graphs", widths=(64, 64, 64), local_injection="held"
    ),
    "proteins": IGNNConfig(
        features=3, outputs=2, target="graphs", widths=(64, 64, 64), local_injection="held"
    ),
    "ppi": IGNNConfig(
        features=50,
        outputs=121,
        target="nodes",
        widths=(1024, 512, 512, 256, 121),
        normalized=False,
        kappa=0.98,
        local_injection="held",
        skips=True,
        head=False,
        dropout=0.0,
    ),
    "amazon": IGNNConfig(features=334_863, outputs=58, target="nodes", widths=(128,), kappa=0.95),
}
