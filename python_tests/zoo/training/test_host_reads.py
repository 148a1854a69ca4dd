"""A training step reads nothing on the host that a GPU would have to be waited for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deq_kernels as dk
from deq_kernels import _native
from deq_kernels.models import DEQTransformer
from deq_kernels.models.ignn import Graphs
from deq_zoo.choices import build_gradient, build_solver
from deq_zoo.clipping import clip_gradients
from deq_zoo.data import Vocabulary
from deq_zoo.data.corpus import Corpus
from deq_zoo.data.image_folder import MEAN, STD
from deq_zoo.data.split import normalised
from deq_zoo.equilibrium import GRADIENTS
from deq_zoo.jacobian import JacobianRegularisation, Penalty
from deq_zoo.presets import RunConfig
from deq_zoo.registry import run_config
from deq_zoo.tally import Tally
from deq_zoo.task import Task
from deq_zoo.tasks.ignn import IGNNTask
from deq_zoo.tasks.transformer import TransformerTask
from python_tests.host_reads import HostReads
from python_tests.models.ignn_problems import graphs_of
from python_tests.zoo.training.runs import builder, small_config
from python_tests.zoo.training.test_ignn import SMALL_PPI, config_of, write_ppi

pytestmark = pytest.mark.skipif(
    _native.load_cpu().path is None, reason="the reference reads values as it goes"
)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> HostReads:
    found = HostReads()
    found.deliver_counts_late(monkeypatch)
    return found


def take_a_step(task: Task, config: RunConfig, reads: HostReads) -> None:
    """What the loop does with a batch, after a first one unwatched."""
    task.model.train()
    tally = Tally(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    regularisation = JacobianRegularisation(task.layer, config.training)

    def step(batch: Any, penalty: Penalty) -> None:
        outcome = task.run(batch, depth=None)
        solution = outcome.solution
        value = penalty.value(None if solution is None else solution.z)
        (outcome.loss if value is None else outcome.loss + value).backward()
        tally.add(outcome, value)
        clip_gradients(task.model.parameters(), norm=1.0, each=0.5)
        with torch.no_grad():
            task.after_step()

    with dk.use_backend("native"):
        for number, batch in enumerate(islice(task.batches(generator), 2)):
            # What it draws is on the host, and so is the order of the batches.
            with (
                regularisation.one_step(0, 0, generator) as penalty,
                reads.watch() if number else nullcontext(),
            ):
                step(batch, penalty)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.tensor([1.0]),
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_reads_are_seen(read: Callable[[Tensor], object]) -> None:
    reads = HostReads()
    with reads.watch():
        read(torch.arange(3.0))
        assert reads.found
        with reads.allow():
            count = len(reads.found)
            read(torch.arange(3.0))
    assert len(reads.found) == count
    reads.found.clear()
    x = torch.ones(2, requires_grad=True)
    with reads.watch():
        x.square()[torch.arange(1)].sum().backward()
    assert not reads.found


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_mdeq(gradient: str, reads: HostReads) -> None:
    config = small_config(equilibrium__gradient=gradient, training__pretraining_steps=0)
    take_a_step(builder()(config), config, reads)
    assert not reads.found


def test_regularised_mdeq(reads: HostReads) -> None:
    config = small_config(
        training__pretraining_steps=0,
        training__jacobian_weight=0.5,
        equilibrium__warm_start=True,
        equilibrium__compact=True,
    )
    take_a_step(builder()(config), config, reads)
    assert not reads.found


@pytest.mark.parametrize(
    "settings",
    [
        {"equilibrium.warm_start": True},
        {"equilibrium.gradient": "unrolled"},
        {"equilibrium.gradient": "neumann"},
        {"model.cell": "generic", "equilibrium.forward_steps": 40},
        {"model.cell": "generic", "equilibrium.solver": "broyden", "equilibrium.gradient": "shine"},
    ],
)
def test_ignn(settings: dict[str, Any], reads: HostReads) -> None:
    config = run_config("ignn", preset="karate", settings=settings)
    torch.manual_seed(0)
    take_a_step(IGNNTask.build(config), config, reads)
    assert not reads.found


def test_graphs_are_joined(tmp_path: Path, reads: HostReads) -> None:
    symmetric, directed = graphs_of(symmetric=True), graphs_of()
    with reads.watch():
        joined = Graphs.join([symmetric, directed])
    assert not reads.found
    sizes = joined.adjacency.graph_ptr.diff()
    assert joined.adjacency.pattern.graphs.longest == int(sizes.max())
    write_ppi(tmp_path)
    config = config_of("ppi", training__batch_size=2, **SMALL_PPI)
    task = IGNNTask.build(config, data_root=str(tmp_path))
    with reads.watch():
        (batch,) = task.evaluation_batches("test")
    assert not reads.found
    assert len(batch.graphs) == 2
    assert batch.items == 12
    assert torch.equal(batch.chosen, torch.arange(12))


@pytest.mark.parametrize(("cutoffs", "waits"), [((), 0), ((9, 15), 1)])
def test_the_transformer_waits_for_its_clusters(
    cutoffs: tuple[int, ...], waits: int, reads: HostReads
) -> None:
    words = ("<eos>", "<unk>", *map(str, range(18)))
    tokens = torch.randint(20, (200,), generator=torch.Generator().manual_seed(0))
    corpus = Corpus(
        vocabulary=Vocabulary(words, (1,) * 20), train=tokens, validation=tokens, test=tokens
    )
    settings = {
        "model.width": 16,
        "model.heads": 2,
        "model.inner_width": 16,
        "model.segment": 8,
        "model.memory": 8,
        "model.dropout": 0.1,
        "equilibrium.forward_steps": 6,
        "training.batch_size": 4,
        "training.pretraining_steps": 0,
        "training.jacobian_frequency": 1.0,
    }
    config = run_config("transformer", preset="pydoc", settings=settings)
    torch.manual_seed(0)
    model = DEQTransformer(
        replace(config.model, vocabulary=20, cutoffs=cutoffs),
        solver=build_solver(config.equilibrium),
        gradient=build_gradient(config.equilibrium),
    )
    take_a_step(TransformerTask(model, corpus, config), config, reads)
    assert reads.found == ["tolist"] * waits


def test_images_are_normalised(reads: HostReads) -> None:
    images = torch.randint(256, (2, 3, 4, 4)).float()
    with reads.watch():
        result = normalised(images, MEAN, STD)
    assert not reads.found
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.equal(result, (images - mean) / std)
