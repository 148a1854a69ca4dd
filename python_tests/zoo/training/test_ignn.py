"""IGNN's task: presets, what is learned of which dataset, and runs from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import deq_kernels as dk
from deq_zoo.checkpoint import load_checkpoint
from deq_zoo.cli import main
from deq_zoo.data import DatasetError, GraphSplits, generate_chains, load_karate
from deq_zoo.loop import Trainer
from deq_zoo.metrics import EpochMetrics, read_metrics
from deq_zoo.presets import RunConfig
from deq_zoo.processes import Processes
from deq_zoo.recipes.ignn import PRESETS, IGNNTraining
from deq_zoo.registry import run_config
from deq_zoo.run import run_training
from deq_zoo.tasks.ignn import IGNNTask, build_model

needs_sklearn = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="the folds come with scikit-learn"
)
needs_train = pytest.mark.skipif(
    not all(map(find_spec, ("safetensors", "matplotlib", "tqdm"))),
    reason="training needs the packages of the zoo",
)


def task_of(config: RunConfig, **options: Any) -> IGNNTask:
    torch.manual_seed(config.training.seed)
    return IGNNTask.build(config, **options)


def config_of(preset: str = "chains", **settings: Any) -> RunConfig:
    named = {name.replace("__", ".", 1): value for name, value in settings.items()}
    return run_config("ignn", preset=preset, settings=named)


def write_tu(folder: Path, graphs: int = 40) -> None:
    """Rings of class 0, and paths of class 1, told apart by the degrees of their nodes."""
    edges: list[tuple[int, int]] = []
    owner: list[int] = []
    for graph in range(graphs):
        first, size = len(owner) + 1, 3 + graph % 4
        owner += [graph + 1] * size
        pairs = [(first + i, first + i + 1) for i in range(size - 1)]
        if graph % 2 == 0:
            pairs.append((first + size - 1, first))
        edges += pairs + [(j, i) for i, j in pairs]
    lines = {
        "A": [f"{i}, {j}" for i, j in edges],
        "graph_indicator": owner,
        "graph_labels": [graph % 2 for graph in range(graphs)],
        "node_labels": [sum(i == node for i, _ in edges) for node in range(1, len(owner) + 1)],
    }
    for name, content in lines.items():
        text = "".join(f"{line}\n" for line in content)
        (folder / f"RINGS_{name}.txt").write_text(text, encoding="utf-8")


def write_ppi(folder: Path) -> None:
    """Two graphs per part, whose first label is a node's sign and whose second its neighbour's."""
    generator = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        x = generator.normal(size=(12, 2))
        owner = np.repeat([1, 2], 6)
        links = [{"source": i, "target": i ^ 1} for i in range(12)]
        graph = {"directed": True, "links": links, "nodes": []}
        (folder / f"{split}_graph.json").write_text(json.dumps(graph), encoding="utf-8")
        labels = np.stack([x[:, 0] > 0, x[np.arange(12) ^ 1, 0] > 0], 1)
        for name, array in (("feats", x), ("labels", labels), ("graph_id", owner)):
            np.save(folder / f"{split}_{name}.npy", array)


SMALL_PPI: dict[str, Any] = {
    "model__features": 2,
    "model__outputs": 2,
    "model__widths": (8, 2),
    "training__epochs": 3,
}
RINGS: dict[str, Any] = {"model__features": 2, "model__widths": (8, 8)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_as_published(name: str) -> None:
    preset = PRESETS[name]
    training = preset.training
    assert isinstance(training, IGNNTraining)
    rates = {"chains": 0.01, "cox2": 1e-3, "proteins": 1e-3, "ppi": 5e-3, "amazon": 0.01}
    assert training.learning_rate == rates.get(name, 0.02)
    assert training.optimizer == "adam"
    picard = preset.equilibrium
    assert (picard.solver, picard.forward_steps, picard.rtol, picard.atol) == (
        "fixed_point",
        300,
        1e-4,
        0.0,
    )
    assert run_config("ignn", preset=name).model == preset.model


def test_the_chains_recipe() -> None:
    training = PRESETS["chains"].training
    assert (training.weight_decay, training.clip_each) == (5e-4, 0.5)
    assert next(iter(PRESETS)) == "chains"


def test_nodes_that_count_are_learned() -> None:
    task = task_of(config_of())
    (batch,) = task.evaluation_batches("test")
    task.model.eval()
    outcome = task.run(batch, depth=None)
    (graph,) = generate_chains(seed=0).test
    scores, labels = task.model(batch.graphs)[graph.counted], graph.labels[graph.counted]
    torch.testing.assert_close(outcome.loss, F.cross_entropy(scores, labels))
    assert float(outcome.score[0]) == float((scores.argmax(1) == labels).sum())
    assert outcome.items == 200
    assert outcome.solution is not None
    assert len(outcome.solution.steps) == 40
    assert float(outcome.score[1]) == 200
    assert task.run(batch, depth=2).solution is None


def test_an_epoch_repeats_a_single_graph() -> None:
    task = task_of(config_of(training__repeats=3))
    batches = list(task.batches(torch.Generator()))
    assert len(batches) == task.steps_per_epoch == 3
    assert [batch.items for batch in batches] == [20] * 3


@needs_sklearn
def test_graphs_are_classified(tmp_path: Path) -> None:
    write_tu(tmp_path)
    config = config_of("cox2", training__batch_size=20, training__epochs=30, **RINGS)
    config = replace(config, training=replace(config.training, learning_rate=0.02))
    task = task_of(config, data_root=str(tmp_path))
    batches = list(task.batches(torch.Generator().manual_seed(0)))
    assert [batch.items for batch in batches] == [20, 12]
    assert all(batch.chosen is None for batch in batches)
    again = list(task.batches(torch.Generator().manual_seed(1)))
    assert not torch.equal(batches[0].graphs.labels, again[0].graphs.labels)
    trainer = Trainer(task, config)
    for _ in range(30):
        trainer.run_epoch()
    assert trainer.evaluate("test").value == 1.0
    for layer in task.model.layers:
        assert float(layer.weight.detach().abs().sum(1).max()) <= 0.9 * (1 + 1e-6)


def test_labels_of_many_kinds(tmp_path: Path) -> None:
    """As of PPI: binary labels, one graph a step, a bound from the graphs' own radii."""
    write_ppi(tmp_path)
    config = config_of("ppi", training__batch_size=2, **SMALL_PPI)
    task = task_of(config, data_root=str(tmp_path))
    assert task.model.radius == pytest.approx(1.0, abs=1e-4)
    (batch,) = task.evaluation_batches("validation")
    assert batch.items == 12
    outcome = task.run(batch, depth=None)
    scores = task.model(batch.graphs)
    labels = batch.graphs.labels
    torch.testing.assert_close(outcome.loss, F.binary_cross_entropy_with_logits(scores, labels))
    said = scores > 0
    true_positive = int((said & (labels > 0)).sum())
    wrong = int((said != (labels > 0)).sum())
    assert [int(part) for part in outcome.score] == [
        2 * true_positive,
        2 * true_positive + wrong,
    ]
    # The graphs of both layers are samples.
    assert len(outcome.solution.steps) == 4
    trainer = Trainer(task, config)
    losses = [trainer.run_epoch().train.loss for _ in range(3)]
    assert losses == sorted(losses, reverse=True)


def test_the_bound_is_that_of_every_graph(tmp_path: Path) -> None:
    """A star of 4 rays has a radius of 2, and stands in one part at a time."""
    for split in ("train", "valid", "test"):
        folder = tmp_path / split
        folder.mkdir()
        write_ppi(folder)
        links = [{"source": 0, "target": ray} for ray in range(1, 5)]
        (folder / f"{split}_graph.json").write_text(json.dumps({"links": links}), encoding="utf-8")
        task = task_of(config_of("ppi", **SMALL_PPI), data_root=str(folder))
        assert task.model.radius == pytest.approx(2.0, abs=1e-3)


def test_processes_share_what_is_learned() -> None:
    config = config_of()
    parts = []
    for rank in range(2):
        task = task_of(config, processes=Processes(rank=rank, count=2))
        (batch, *_) = task.batches(torch.Generator())
        parts.append(batch.chosen)
        (whole,) = task.evaluation_batches("validation")
        assert whole.items == 100
    assert [len(part) for part in parts] == [10, 10]
    assert len(torch.cat(parts).unique()) == 20


@needs_sklearn
def test_processes_share_graphs(tmp_path: Path) -> None:
    write_tu(tmp_path)
    config = config_of("cox2", training__batch_size=31, **RINGS)
    found = [
        list(
            task_of(
                config, data_root=str(tmp_path), processes=Processes(rank=rank, count=2)
            ).batches(torch.Generator().manual_seed(0))
        )
        for rank in range(2)
    ]
    # 32 graphs: 16 and 15 of the first batch, and 1 and none of the second.
    first, second = found
    assert [batch.items for batch in (first[0], second[0], first[1])] == [16, 15, 1]
    assert second[1] is None


def test_a_process_without_a_node_gets_no_batch() -> None:
    """There are two leaders of the karate club."""
    task = task_of(config_of("karate"), processes=Processes(rank=2, count=3))
    assert set(task.batches(torch.Generator())) == {None}
    assert len(list(task.batches(torch.Generator()))) == task.steps_per_epoch


@pytest.mark.parametrize(
    ("equilibrium", "gradient", "path"),
    [
        ({"gradient": "unrolled", "damping": 0.8}, dk.Unrolled(steps=5, damping=0.8), "in one op"),
        ({"gradient": "neumann"}, dk.Neumann(steps=5, damping=0.5), "in one op"),
        ({"gradient": "jfb"}, dk.JacobianFree(), "in one op"),
        ({"solver": "broyden", "gradient": "shine"}, dk.Shine(fallback=1.3), "step by step"),
    ],
)
def test_any_gradient_and_solver(
    equilibrium: dict[str, Any], gradient: dk.Gradient, path: str
) -> None:
    settings = {f"equilibrium.{name}": value for name, value in equilibrium.items()}
    settings["equilibrium.forward_steps"] = 60
    config = run_config("ignn", preset="karate", settings=settings)
    task = task_of(config)
    assert path in task.describe()
    assert task.model.layers[0].deq.gradient == gradient
    (batch, *_) = task.batches(torch.Generator())
    outcome = task.run(batch, depth=None)
    outcome.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.model.parameters())
    assert outcome.solution.converged.all()


def test_other_datasets_than_the_preset_s() -> None:
    config = run_config("ignn", preset="chains", data="karate")
    assert (config.model.features, config.model.outputs) == (34, 2)
    assert run_config("ignn", preset="ppi", data="chains").model.widths[-1] == 2
    with pytest.raises(ValueError, match="the dataset tu has classes of graphs, but the preset's"):
        run_config("ignn", preset="chains", data="tu")
    with pytest.raises(ValueError, match="the dataset karate has classes of nodes"):
        run_config("ignn", preset="cox2", data="karate")


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chains needs no folder; leave --data-root out"):
        task_of(config_of(), data_root=str(tmp_path))
    with pytest.raises(ValueError, match="ppi is read from disk; name its folder with --data-root"):
        task_of(config_of("ppi"))
    with pytest.raises(DatasetError, match="is missing"):
        task_of(config_of("amazon"), data_root=str(tmp_path))
    with pytest.raises(ValueError, match=r"34 features, but model\.features is 7; choose .* --set"):
        task_of(config_of("karate", model__features=7))
    write_ppi(tmp_path)
    with pytest.raises(ValueError, match="the dataset has 2 features, but model"):
        task_of(config_of("ppi"), data_root=str(tmp_path))
    config = config_of("karate")
    splits = load_karate()
    model = build_model(config, splits)
    empty = GraphSplits(train=splits.train, validation=(), test=splits.test, outputs=2)
    with pytest.raises(ValueError, match="at least one graph in the split validation, got none"):
        IGNNTask(model, empty, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats must be a whole number, at least 1"),
        ({"fold": 10}, "fold must be from 0 to 9; got 10"),
        ({"fold": True}, "fold must be from 0 to 9"),
        ({"node_features": "names"}, "node_features must be one of 'labels'"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IGNNTraining(**options)


class InterruptedRunError(Exception):
    """Stands for whatever ends a run early."""


@needs_train
def test_train_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bits after a stop, projections included."""
    common = ["train", "ignn", "--set", "training.repeats=4", "--preset", "chains"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*common, "--epochs", "4", "--out", str(whole)]) == 0
    printed = capsys.readouterr().out
    assert "1,888 parameters, nodes classified, solved in one op" in printed
    assert "micro_f1" in printed

    config = config_of(training__repeats=4, training__epochs=4)

    def stop(metrics: EpochMetrics) -> None:
        if metrics.epoch == 2:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        run_training(config, parts, on_epoch=stop)
    assert main([*common, "--epochs", "4", "--out", str(parts), "--resume"]) == 0
    one, other = (load_checkpoint(out / "checkpoint.safetensors") for out in (whole, parts))
    assert one.model.keys() == other.model.keys()
    for name, tensor in one.model.items():
        assert torch.equal(tensor, other.model[name]), name
    assert len(read_metrics(parts / "metrics.jsonl")) == 4


@needs_train
def test_a_damaged_dataset_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tu(tmp_path)
    (tmp_path / "RINGS_A.txt").write_text("1, x\n", encoding="utf-8")
    out = tmp_path / "run"
    command = ["train", "ignn", "--preset", "cox2", "--data-root", str(tmp_path)]
    assert main([*command, "--out", str(out)]) == 2
    assert "RINGS_A.txt must hold numbers" in capsys.readouterr().err
    assert not out.exists()
