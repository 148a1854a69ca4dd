"""The implicit graph neural network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from deq_kernels import Gradient, Solution, Solver
from deq_kernels.models.ignn.config import IGNNConfig
from deq_kernels.models.ignn.graphs import Graphs
from deq_kernels.models.ignn.head import GraphHead, NodeHead
from deq_kernels.models.ignn.layer import ImplicitGraphLayer
from deq_kernels.nn import perron_radius
from deq_kernels.options import check_count, check_positive

RADIUS_MARGIN = 1e-5
"""Added to the spectral radius of an A that is not normalised, as published."""


class IGNN(nn.Module):
    """Implicit graph neural network (Gu et al. 2020) for whole graphs or their nodes.

        model = IGNN(IGNNConfig.preset("proteins"))
        scores = model(model.config.prepare(Graphs.join(load_tu(folder)[:128])))
        ...
        optimizer.step()
        model.project_()

    Every W is kept within ‖W‖_∞ ≤ κ / radius, where each layer has exactly one equilibrium: at
    once when the model is made, and by `project_` after each step of an optimiser.

    Args:
        config: the architecture, e.g. `IGNNConfig.preset("cox2")`.
        radius: a bound on ρ(|A|) of all graphs that will come: 1 for normalised ones,
            `radius_of(graphs)` for others.
        solver: of every layer; None for the published Picard iteration, at most 300 steps, to a
            relative tolerance of 1e-4. Tolerances are of the config's `norm` on the structured
            cell, and of a graph's 2-norm on the generic path, where those of distant nodes with
            small states need a smaller one.
        gradient: how the gradient passes each equilibrium; None for `Implicit` by that iteration.
            The structured cell has Implicit, Neumann, JacobianFree and Unrolled.
        eval_solver: solver in eval mode; default `solver`.
        warm_start: start each solve where the last one ended, if that was of the same graphs (on
            the generic path: of as many, and as large ones; see `DEQ`).

    Raises:
        ValueError: cell="structured" does not have the solvers or the gradient, or the radius is
            not above 0.
    """

    def __init__(
        self,
        config: IGNNConfig,
        *,
        radius: float = 1.0,
        solver: Solver | None = None,
        gradient: Gradient | None = None,
        eval_solver: Solver | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        check_positive("radius", radius)
        self.config = config
        self.radius = radius
        inputs = (config.features, *config.widths[:-1])
        self.layers = nn.ModuleList(
            ImplicitGraphLayer(
                config,
                features=features,
                width=width,
                solver=solver,
                gradient=gradient,
                eval_solver=eval_solver,
                warm_start=warm_start,
            )
            for features, width in zip(inputs, config.widths, strict=True)
        )
        self.skips = nn.ModuleList(
            nn.Linear(features, width)
            for features, width in zip(inputs, config.widths, strict=True)
            if config.skips
        )
        self.head = GraphHead(config) if config.target == "graphs" else NodeHead(config)
        self.project_()

    def forward(self, graphs: Graphs | Any, *, pretrain_steps: int | None = None) -> Tensor:
        """Scores of a batch of graphs, or of their nodes.

        Args:
            graphs: `Graphs`, taken as they are: pass them through `config.prepare` once. Or a
                `Data` or `Batch` of torch_geometric, which is prepared here.
            pretrain_steps: if given, apply each layer's map this many times from zero and
                differentiate through all of them, instead of solving for the equilibria.

        Returns:
            [G, outputs] or [N, outputs], before the softmax or the sigmoid.

        Raises:
            TypeError: dtypes or devices of graphs and model differ.
            ValueError: the graphs have other features than the config says, or `pretrain_steps` is
                below 1.
        """
        if pretrain_steps is not None:
            check_count("pretrain_steps", pretrain_steps)
        if not isinstance(graphs, Graphs):
            graphs = self.config.prepare(graphs)
        if graphs.width != self.config.features:
            raise ValueError(
                f"graphs must have {self.config.features} features per node, as the config says; "
                f"got {graphs.width}"
                + ("." if graphs.features is not None else ", the nodes' unit vectors.")
            )
        x, adjacency = graphs.features, graphs.adjacency
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, ImplicitGraphLayer)
            state = layer(x, adjacency, pretrain_steps=pretrain_steps)
            if self.config.skips:
                state = state + self._skip(index, x)
                if index + 1 < len(self.layers):
                    state = F.elu(state)
            x = state
        scores: Tensor = self.head(x, adjacency)
        return scores

    def project_(self) -> None:
        """Move every W to the nearest one with ‖W‖_∞ ≤ κ / radius, after a step of an optimiser."""
        for layer in self.layers:
            assert isinstance(layer, ImplicitGraphLayer)
            layer.project_(self.radius)

    @property
    def last_solutions(self) -> tuple[Solution, ...]:
        """How the last equilibria were found, layer by layer, per graph; none before the first."""
        found = (layer.last_solution for layer in self.layers)
        return tuple(solution for solution in found if isinstance(solution, Solution))

    def _skip(self, index: int, x: Tensor | None) -> Tensor:
        linear = self.skips[index]
        assert isinstance(linear, nn.Linear)
        if x is None:
            # U is the unit matrix.
            return linear.weight.t() + linear.bias
        skipped: Tensor = linear(x)
        return skipped


def radius_of(graphs: Graphs) -> float:
    """A bound on ρ(|A|) of every graph: `perron_radius`, and 1e-5 for what rounding adds.

    A directed graph without cycles has a radius of 0, for which every W is well-posed: the bound of
    1e-5 lets W grow as it likes. Take a larger one to keep it in check.

    Args:
        graphs: one or many, as the model takes them.
    """
    upper = perron_radius(graphs.adjacency).upper
    return (float(upper.max()) if len(upper) else 0.0) + RADIUS_MARGIN
