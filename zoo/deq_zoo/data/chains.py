"""The chains task of IGNN: what is said at one end must be known at the other."""

from __future__ import annotations

import torch

from deq_kernels.cells import Adjacency
from deq_kernels.models.ignn import Graphs
from deq_kernels.options import check_count, check_not_negative
from deq_zoo.data.graph_splits import GraphSplits, node_splits


def generate_chains(
    *,
    classes: int = 2,
    chains: int = 20,
    length: int = 10,
    features: int = 100,
    noise: float = 0.0,
    train: int = 20,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
) -> GraphSplits:
    """Directed chains whose nodes all have the class that only the first one shows.

    Chain edges lead from each node to the next one, with weight 1; node-level splits are drawn at
    random. With the defaults it is the task of Gu et al. 2020, "Implicit Graph Neural Networks": 20
    nodes to train on, 100 to choose by and 200 to report, of 400.

    Args:
        classes: at least 2.
        chains: per class.
        length: nodes of a chain.
        features: of a node, at least `classes`. All are 0, but for feature c of the first node of
            a chain of class c, which is 1.
        noise: features get numbers added that are uniform between −noise and noise.
        train: how many nodes are counted in training.
        validation: see train.
        test: see train.
        seed: draws the noise and the split; the same seed always gives the same.

    Returns:
        Each part is one `Graphs` of classes × chains graphs, the classes one after another;
        labels are those of nodes, [N] int64.

    Raises:
        ValueError: a number is out of its range.
    """
    counts = {"classes": classes, "chains": chains, "length": length, "features": features}
    for name, count in (counts | {"train": train, "validation": validation, "test": test}).items():
        check_count(name, count)
    check_not_negative("noise", noise)
    graphs = classes * chains
    nodes = graphs * length
    if classes < 2:
        raise ValueError(f"classes must be at least 2; got {classes}.")
    if features < classes:
        raise ValueError(
            f"features must be at least as many as classes, {classes}; got {features}."
        )
    if train + validation + test > nodes:
        raise ValueError(
            f"train, validation and test must be at most {nodes} nodes together; got "
            f"{train} + {validation} + {test}. Take more or longer chains."
        )
    generator = torch.Generator().manual_seed(seed)
    first = torch.arange(graphs) * length
    x = noise * (2 * torch.rand(nodes, features, generator=generator) - 1)
    class_of_chain = torch.arange(classes).repeat_interleave(chains)
    x[first, class_of_chain] += 1.0
    source = (first[:, None] + torch.arange(length - 1)).flatten()
    adjacency = Adjacency.from_coo(
        torch.stack([source, source + 1]), nodes=nodes, graph_ptr=torch.arange(graphs + 1) * length
    )
    order = torch.randperm(nodes, generator=generator)
    parts = order.split([train, validation, test, nodes - train - validation - test])
    return node_splits(
        Graphs(adjacency=adjacency, features=x, labels=class_of_chain.repeat_interleave(length)),
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        outputs=classes,
    )
