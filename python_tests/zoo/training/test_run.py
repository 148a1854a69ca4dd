"""A run and its folder: resuming gives the same bits, and nothing is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from deq_zoo.checkpoint import CheckpointError, load_checkpoint
from deq_zoo.folder import RunFolderError
from deq_zoo.loop import Trainer
from deq_zoo.metrics import EpochMetrics, read_metrics
from deq_zoo.presets import RunConfig
from deq_zoo.run import run_training
from python_tests.zoo.training.runs import (
    EQUILIBRIUM_ONLY,
    builder,
    images,
    small_config,
    with_changes,
)

pytestmark = pytest.mark.skipif(
    find_spec("safetensors") is None or find_spec("matplotlib") is None,
    reason="a run writes safetensors and a matplotlib plot",
)

CONFIG = small_config()
SHORT = with_changes(EQUILIBRIUM_ONLY)


class InterruptedRunError(Exception):
    """Stands for whatever ends a run early."""


def _run(config: RunConfig, out: Path, *, resume: bool = False, every: int = 1) -> Trainer:
    return run_training(config, out, resume=resume, checkpoint_every=every, build=builder())


def _without_time(path: Path) -> list[EpochMetrics]:
    return [replace(metrics, seconds=0.0) for metrics in read_metrics(path)]


def test_what_a_run_writes(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    trainer = _run(CONFIG, out)
    assert sorted(entry.name for entry in out.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "training.png",
    ]
    assert json.loads((out / "config.json").read_text(encoding="utf-8")) == CONFIG.to_json()
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    epochs = read_metrics(out / "metrics.jsonl")
    assert epochs == trainer.history
    assert [metrics.epoch for metrics in epochs] == [1, 2, 3, 4]
    assert [metrics.step for metrics in epochs] == [3, 6, 9, 12]
    assert [metrics.phase for metrics in epochs] == ["pretrain"] + 3 * ["equilibrium"]
    assert epochs[0].train.solver_steps is None
    for metrics in epochs[1:]:
        for part in (metrics.train, metrics.validation):
            assert part.solver_steps is not None
            assert 1 <= part.solver_steps <= 4
            assert 0 <= part.value <= 1


def test_learning_lowers_the_loss(tmp_path: Path) -> None:
    trainer = _run(small_config(training__epochs=7, equilibrium__forward_steps=8), tmp_path / "run")
    losses = [metrics.train.loss for metrics in trainer.history]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(("every", "stop_after"), [(1, 1), (1, 3), (2, 3)])
def test_a_resumed_run_gives_the_same_bits(tmp_path: Path, every: int, stop_after: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _run(CONFIG, whole)

    def stop(metrics: EpochMetrics) -> None:
        if metrics.epoch == stop_after:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        run_training(CONFIG, parts, checkpoint_every=every, build=builder(), on_epoch=stop)
    torch.rand(17)
    resumed_at = []
    trainer = run_training(
        CONFIG,
        parts,
        resume=True,
        build=builder(),
        on_start=lambda trainer: resumed_at.append(trainer.epoch),
    )
    assert resumed_at == [stop_after // every * every]
    assert trainer.epoch == 4
    name = "checkpoint.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert _without_time(parts / "metrics.jsonl") == _without_time(whole / "metrics.jsonl")


def test_the_seed_decides_the_result(tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        _run(small_config(training__epochs=2, training__seed=seed), out)
        weights.append(load_checkpoint(out / "checkpoint.safetensors").model)
    first, again, other = (torch.cat([v.flatten() for v in w.values()]) for w in weights)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    config = SHORT
    _run(config, tmp_path)
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match="already holds a run"):
        _run(config, tmp_path)
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_resuming_with_other_options(tmp_path: Path) -> None:
    config = SHORT
    _run(config, tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.epochs: 1 in the checkpoint, 2 now"):
        _run(with_changes(EQUILIBRIUM_ONLY, training__epochs=2), tmp_path, resume=True)


def test_resuming_into_a_model_of_another_shape(tmp_path: Path) -> None:
    trainer = _run(SHORT, tmp_path)
    checkpoint = trainer.checkpoint()
    weights = {**checkpoint.model, "head.classifier.bias": torch.zeros(11)}
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*classifier\.bias"):
        trainer.restore(replace(checkpoint, model=weights), history=trainer.history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"head.classifier.bias": torch.zeros(10).double()}}, "must be torch.float32"),
        ({"state": {0: {"exp_avg": torch.zeros(5)}}}, "other options, or other parameters"),
        ({"state": {10**6: {"exp_avg": torch.zeros(5)}}}, "other options, or other parameters"),
        ({"state": {0: {"step": torch.tensor(True)}}}, "other options, or other parameters"),
        ({"param_groups": [{"lr": 0.1}]}, "other options, or other parameters"),
        ({"param_groups": []}, "other options, or other parameters"),
        ({"rng": {"run": torch.zeros(3)}}, "does not fit the run"),
        ({"rng": {}}, "does not fit the run"),
    ],
)
def test_resuming_from_parts_of_another_kind(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    trainer = _run(SHORT, tmp_path)
    whole = trainer.checkpoint()
    parts: dict[str, Any] = {"model": dict(whole.model), "rng": dict(whole.rng), **whole.optimizer}
    for name, value in change.items():
        parts[name] = {**parts[name], **value} if name in ("model", "state") else value
    optimizer = {name: parts[name] for name in ("state", "param_groups")}
    damaged = replace(whole, model=parts["model"], rng=parts["rng"], optimizer=optimizer)
    with pytest.raises(CheckpointError, match=message):
        trainer.restore(damaged, history=trainer.history)
    trainer.restore(whole, history=trainer.history)


def test_resuming_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        _run(CONFIG, tmp_path / "nothing", resume=True)
    assert list(tmp_path.iterdir()) == []


def _stop_after_first_epoch(metrics: EpochMetrics) -> None:
    raise InterruptedRunError


def test_a_run_stopped_before_its_first_checkpoint_may_be_started_again(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        run_training(
            CONFIG,
            tmp_path,
            checkpoint_every=2,
            build=builder(),
            on_epoch=_stop_after_first_epoch,
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "metrics.jsonl"]
    _run(SHORT, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == SHORT.to_json()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0, 2], r"must be 1 to 3 in order, got \[1, 3\]; start the run anew"),
        ([0, 1], r"must be 1 to 3 in order, got \[1, 2\]; start the run anew"),
        ([0, 2, 1], r"must be 1 to 3 in order, got \[1, 3, 2\]; start the run anew"),
        ([], r"must be 1 to 3 in order, got \[\]; start the run anew"),
        (None, r"cannot be read \(.*metrics\.jsonl.*\); start the run anew in another folder"),
    ],
)
def test_resuming_without_all_metrics(tmp_path: Path, keep: list[int] | None, message: str) -> None:
    config = with_changes(EQUILIBRIUM_ONLY, training__epochs=3)
    _run(config, tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if keep is None:
        path.unlink()
    else:
        path.write_text("".join(lines[index] for index in keep), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        _run(config, tmp_path, resume=True)


def test_resuming_with_a_damaged_line_of_metrics(tmp_path: Path) -> None:
    _run(SHORT, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:1 does not hold .*start the run"):
        _run(SHORT, tmp_path, resume=True)


def test_threads_are_set_for_the_run_only(
    tmp_path: Path, set_threads: Callable[[int], None]
) -> None:
    set_threads(1)
    seen = []
    run_training(
        with_changes(EQUILIBRIUM_ONLY, machine__threads=2, equilibrium__forward_steps=2),
        tmp_path,
        build=builder(),
        on_step=lambda: seen.append(torch.get_num_threads()),
    )
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1


def test_checkpoints_at_least_every_epoch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        _run(CONFIG, tmp_path, every=0)


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    data = images()
    data.train.images[3] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1, step"):
        run_training(CONFIG, tmp_path, build=builder(data))


def test_a_validation_loss_that_is_not_finite(tmp_path: Path) -> None:
    data = images()
    data.validation.images[3] = float("nan")
    message = "the loss became nan in the validation of epoch 1; lower the learning rate"
    with pytest.raises(FloatingPointError, match=message):
        run_training(CONFIG, tmp_path, build=builder(data))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_an_empty_split(tmp_path: Path, part: str) -> None:
    data = images()
    data = replace(data, **{part: getattr(data, part).head(0)})
    with pytest.raises(ValueError, match=f"at least one image in the split {part}, got none"):
        run_training(CONFIG, tmp_path / "run", build=builder(data))
    assert list(tmp_path.iterdir()) == []
