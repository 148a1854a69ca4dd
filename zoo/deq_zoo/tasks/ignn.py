"""IGNN classifies graphs, or the nodes of graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels import Solution
from deq_kernels.models.ignn import IGNN, IGNNConfig, ImplicitGraphLayer, radius_of
from deq_zoo.choices import build_gradient, build_solver
from deq_zoo.data import (
    Graphs,
    GraphSplits,
    generate_chains,
    load_amazon,
    load_karate,
    load_ppi,
    load_tu,
    tu_splits,
)
from deq_zoo.measure import MICRO_F1
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, Processes
from deq_zoo.recipes.ignn import FOLDS, PRESETS, IGNNTraining
from deq_zoo.task import Outcome, Task

DATASETS = {
    "chains": "40 chains whose nodes have the class that the first one shows, generated",
    "karate": "Zachary's karate club, 34 members, bundled",
    "tu": "whole graphs in the TU text format, such as COX2 and PROTEINS, in --data-root",
    "ppi": "protein interactions, JSON and NumPy files in --data-root",
    "amazon": "Amazon's co-purchases, text files in --data-root",
}

SHAPES = {"chains": (100, 2), "karate": (34, 2), "ppi": (50, 121), "amazon": (334_863, 58)}
"""Features and outputs of the datasets that have nodes for items."""


@dataclass(frozen=True)
class Batch:
    """Graphs on the device, and what of them is learned.

    Attributes:
        graphs: joined, with labels.
        chosen: numbers of the nodes whose labels count; None where items are graphs.
        items: how many labels that are.
    """

    graphs: Graphs
    chosen: Tensor | None
    items: int


class IGNNTask(Task):
    """Scores of graphs or nodes, by cross entropy of classes or of labels that are 0 or 1 each.

    The score is the micro-averaged F1 of all labels; where each item has one class, that is the
    accuracy. Processes share the graphs of a batch or, where nodes are classified, its nodes, which
    all of them solve for.

    Args:
        model: on the device of the config.
        splits: the data.
        config: of the run.
        processes: that train together.

    Raises:
        ValueError: the data do not fit the model's config, or a split is empty.
    """

    presets = PRESETS
    datasets = DATASETS
    measure = MICRO_F1

    def __init__(
        self, model: IGNN, splits: GraphSplits, config: RunConfig, processes: Processes = ALONE
    ) -> None:
        training = config.training
        assert isinstance(training, IGNNTraining)
        check_splits(splits, model.config)
        self.model: IGNN = model
        self.config = config
        self.training = training
        self.processes = processes
        self.multilabel = splits.multilabel
        machine = config.machine
        device, dtype = machine.find_device(), machine.parameter_dtype
        # On the device from the start, and the numbers of nodes that count looked up once.
        self._parts = {
            name: [
                self._batch(model.config.prepare(graphs).to(device, dtype), sharing)
                for graphs in part
            ]
            for name, part, sharing in (
                ("train", splits.train, processes),
                ("validation", splits.validation, ALONE),
                ("test", splits.test, ALONE),
            )
        }
        self.steps_per_epoch = training.repeats * -(-len(splits.train) // training.batch_size)

    @classmethod
    def build(
        cls, config: RunConfig, *, data_root: str | None = None, processes: Processes = ALONE
    ) -> IGNNTask:
        """See `Task.build`."""
        splits = load_data(config, data_root)
        check_splits(splits, config.model)
        return cls(build_model(config, splits), splits, config, processes)

    @classmethod
    def model_for(cls, model: IGNNConfig, data: str) -> IGNNConfig:
        """For the features and the classes of the dataset's nodes.

        Raises:
            ValueError: the dataset has graphs for items and the model nodes, or the other way
                round; or the model's layers do not fit.
        """
        target = "graphs" if data == "tu" else "nodes"
        if model.target != target:
            raise ValueError(
                f"the dataset {data} has classes of {target}, but the preset's model classifies "
                f"{model.target}; choose another preset"
            )
        if data == "tu":
            return model
        features, outputs = SHAPES[data]
        if not model.head:
            # The last layer makes the scores.
            widths = (*model.widths[:-1], outputs)
            return replace(model, features=features, outputs=outputs, widths=widths)
        return replace(model, features=features, outputs=outputs)

    def batches(self, generator: torch.Generator) -> Iterator[Batch | None]:
        """Graphs in random order, or those of which nodes are classified."""
        items = self._parts["train"]
        for _ in range(self.training.repeats):
            order = torch.randperm(len(items), generator=generator)
            for numbers in order.split(self.training.batch_size):
                if self.model.config.target == "graphs":
                    numbers = self.processes.share(numbers)
                if not len(numbers):
                    yield None
                    continue
                batch = self._join([items[number] for number in numbers.tolist()])
                yield batch if batch.items else None

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """Graphs in the stored order."""
        items, size = self._parts[split], self.training.batch_size
        for start in range(0, len(items), size):
            yield self._join(items[start : start + size])

    def run(self, batch: Batch, *, depth: int | None) -> Outcome:
        """Mean loss of the labels that count, and their F1."""
        scores = self.model(batch.graphs, pretrain_steps=depth)
        labels = batch.graphs.labels
        assert labels is not None
        if batch.chosen is not None:
            scores, labels = scores[batch.chosen], labels[batch.chosen]
        if self.multilabel:
            loss = F.binary_cross_entropy_with_logits(scores, labels)
        else:
            loss = F.cross_entropy(scores, labels)
        solutions = self.model.last_solutions
        return Outcome(
            loss=loss,
            items=batch.items,
            score=self._score(scores.detach(), labels),
            solution=Solution.joined(solutions) if solutions and depth is None else None,
        )

    def after_step(self) -> None:
        """Keep every layer's W in the ball in which there is one equilibrium."""
        self.model.project_()

    def describe(self) -> str:
        """Parameters, how the layers are solved, and what the score is."""
        layer = self.model.layers[0]
        assert isinstance(layer, ImplicitGraphLayer)
        path = "in one op" if layer.deq.solves_in_one_op() else "step by step"
        score = "" if self.multilabel else "; with one class each, micro-F1 is the accuracy"
        kind = self.model.config.target
        return f"{super().describe()}, {kind} classified, solved {path}{score}"

    def _join(self, items: Sequence[Batch]) -> Batch:
        """Several as one, without asking the device how many nodes count."""
        if len(items) == 1:
            return items[0]
        joint = Graphs.join([item.graphs for item in items])
        chosen, first = [], 0
        for item in items:
            if item.chosen is not None:
                chosen.append(item.chosen + first)
            first += item.graphs.adjacency.nodes
        count = sum(item.items for item in items)
        return Batch(joint, torch.cat(chosen) if chosen else None, count)

    def _batch(self, graphs: Graphs, processes: Processes) -> Batch:
        if self.model.config.target == "graphs":
            return Batch(graphs, None, len(graphs))
        counted = graphs.counted
        if counted is None:
            chosen = torch.arange(graphs.adjacency.nodes, device=graphs.adjacency.device)
        else:
            chosen = counted.nonzero().flatten()
        chosen = processes.share(chosen)
        return Batch(graphs, chosen, len(chosen))

    def _score(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the micro-averaged F1, 2 TP and 2 TP + FP + FN."""
        if not self.multilabel:
            correct = (scores.argmax(1) == labels).sum()
            return correct, torch.full_like(correct, len(labels))
        said, true = scores > 0, labels > 0.5
        return 2 * (said & true).sum(), said.sum() + true.sum()


def load_data(config: RunConfig, data_root: str | None) -> GraphSplits:
    """The dataset the config names.

    Raises:
        ImportError: scikit-learn is not installed, and the dataset is split into folds.
        ValueError: a folder is needed or not, or the dataset in it is damaged.
    """
    training = config.training
    assert isinstance(training, IGNNTraining)
    made_here = config.data in ("chains", "karate")
    if made_here != (data_root is None):
        raise ValueError(
            f"the dataset {config.data} needs no folder; leave --data-root out"
            if made_here
            else f"the dataset {config.data} is read from disk; name its folder with --data-root"
        )
    if config.data == "chains":
        return generate_chains(seed=training.seed)
    if config.data == "karate":
        return load_karate(seed=training.seed)
    assert data_root is not None
    if config.data == "ppi":
        return load_ppi(data_root)
    if config.data == "amazon":
        return load_amazon(data_root, seed=training.seed)
    graphs = load_tu(data_root, features=training.node_features)
    return tu_splits(graphs, fold=training.fold, folds=FOLDS)


def build_model(config: RunConfig, splits: GraphSplits) -> IGNN:
    """A newly initialised model with the solver and the gradient the config names.

    It is well-posed for every graph of the dataset: a normalised A has a radius of 1, and others
    are looked at.
    """
    radius = 1.0
    if not config.model.normalized:
        parts = (*splits.train, *splits.validation, *splits.test)
        radius = max(radius_of(graphs) for graphs in parts)
    model = IGNN(
        config.model,
        radius=radius,
        solver=build_solver(config.equilibrium),
        gradient=build_gradient(config.equilibrium),
        warm_start=config.equilibrium.warm_start,
    )
    return model.to(config.machine.find_device(), config.machine.parameter_dtype)


def check_splits(splits: GraphSplits, model: IGNNConfig) -> None:
    """Make sure that a dataset fits a model.

    Raises:
        ValueError: it does not, or a split is empty.
    """
    for name in ("train", "validation", "test"):
        if not getattr(splits, name):
            raise ValueError(f"training needs at least one graph in the split {name}, got none")
    for setting, found, chosen in (
        ("features", splits.width, model.features),
        ("outputs", splits.outputs, model.outputs),
    ):
        if found != chosen:
            raise ValueError(
                f"the dataset has {found} {setting}, but model.{setting} is {chosen}; choose the "
                f"preset that is for this dataset, or --set model.{setting}={found}"
            )
