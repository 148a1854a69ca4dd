"""A checkpoint is evaluated as its run would have been."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from deq_zoo.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from deq_zoo.cli import main
from deq_zoo.data import Splits
from deq_zoo.evaluate import evaluate_checkpoint
from deq_zoo.loop import Trainer
from deq_zoo.run import run_training
from python_tests.zoo.training.runs import images, small_config

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("sklearn", "safetensors", "matplotlib"))),
    reason="training needs the packages of the zoo",
)


def _images(*, seed: int) -> Splits:
    return images()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Path]:
    monkeypatch.setattr("deq_zoo.data.digits.load_digits", _images)
    trainer = run_training(small_config(training__epochs=2), tmp_path)
    return trainer, tmp_path / "checkpoint.safetensors"


def test_both_splits(trained: tuple[Trainer, Path], capsys: pytest.CaptureFixture[str]) -> None:
    trainer, path = trained
    config, validation = evaluate_checkpoint(path, split="validation")
    assert config == trainer.config
    assert validation == trainer.history[-1].validation
    torch.manual_seed(9)
    test = trainer.evaluate("test")
    assert evaluate_checkpoint(path)[1] == test
    assert main(["evaluate", str(path)]) == 0
    out = capsys.readouterr().out
    assert "mdeq digits on digits, test: accuracy" in out
    assert f"loss {test.loss:.4f}" in out
    assert main(["evaluate", str(path), "--split", "validation", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["accuracy"] == validation.value
    assert values["split"] == "validation"


def _without_model(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, replace(checkpoint, model={}))


def _older(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    config = {name: v for name, v in checkpoint.config.items() if name != "training.epochs"}
    save_checkpoint(path, replace(checkpoint, config=config))


def _with_config(**changes: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        checkpoint = load_checkpoint(path)
        named = {name.replace("__", "."): value for name, value in changes.items()}
        save_checkpoint(path, replace(checkpoint, config={**checkpoint.config, **named}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_with_config(task=["mdeq"]), "this is no config of a run of this version"),
        (_with_config(training__learning_rate=10**400), "learning_rate must be a number; got 1"),
        (_with_config(training__epochs=[[[1]]]), "training.epochs must be a whole number"),
        (_with_config(model__image_size=7), "this is no config of a run of this version"),
        (_with_config(model__channels=[2**40, 2**40]), "cannot be"),
        (lambda path: path.unlink(), "there is no checkpoint at"),
        (lambda path: path.write_bytes(path.read_bytes()[:99]), "is damaged or no safetensors"),
        (_without_model, "the checkpoint does not fit the model"),
        (_older, "this is no config of a run of this version"),
    ],
)
def test_checkpoints_that_cannot_be_evaluated(
    trained: tuple[Trainer, Path],
    damage: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, path = trained
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        evaluate_checkpoint(path)
    assert main(["evaluate", str(path)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert "--resume" not in errors
