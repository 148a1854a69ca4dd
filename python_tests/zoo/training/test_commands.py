"""The command line: help, training, the demo, and what it says when something is wrong."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from deq_zoo.cli import COMMANDS, main
from deq_zoo.commands import demo
from deq_zoo.data import Splits, load_digits
from deq_zoo.equilibrium import GRADIENTS
from deq_zoo.metrics import read_metrics
from deq_zoo.registry import MODELS

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("sklearn", "safetensors", "matplotlib", "tqdm"))),
    reason="training needs the packages of the zoo",
)

FAST = [
    *("--epochs", "2", "--set", "training.pretraining_steps=2"),
    *("--set", "training.pretraining_depth=2", "--set", "equilibrium.forward_steps=4"),
]


def _few_digits(*, seed: int) -> Splits:
    digits = load_digits(seed=seed)
    return Splits(
        train=digits.train.head(96),
        validation=digits.validation.head(32),
        test=digits.test.head(32),
    )


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deq_zoo.data.digits.load_digits", _few_digits)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([command, "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: deq-zoo {command}")
    assert "%%" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("name", MODELS)
def test_train_help_states_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", name, "--help"])
    assert raised.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"usage: deq-zoo train {name} [-h] [--preset")
    assert "training.png" in out
    assert "equilibrium.gradient_steps" in out
    assert "training.nesterov false" in out
    assert "machine.threads 1" in out


@pytest.mark.usefixtures("few_digits")
def test_train_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", "mdeq", "--gradient", "jfb", "--seed", "1", "--out", str(out), *FAST]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "54,362 parameters, state of 1,280 numbers per image" in printed
    assert "epoch   1/2 pretrain" in printed
    assert "epoch   2/2 equilibrium" in printed
    assert "note: pretraining" not in printed
    assert "\ndone: " in printed
    assert sorted(entry.name for entry in out.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "training.png",
    ]
    assert len(read_metrics(out / "metrics.jsonl")) == 2
    assert main(command) == 2
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume", "--set", "training.learning_rate=0.1"]) == 2
    assert "training.learning_rate: 0.003 in the checkpoint, 0.1 now" in capsys.readouterr().err


@pytest.mark.usefixtures("few_digits")
def test_a_run_that_only_pretrains_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its accuracy is not one at the equilibrium."""
    short = [*FAST, "--epochs", "1", "--set", "training.pretraining_steps=99"]
    short.remove("training.pretraining_steps=2")
    short.remove("--set")
    assert main(["train", "mdeq", "--out", str(tmp_path / "run"), *short]) == 0
    out = capsys.readouterr().out
    assert "note: pretraining takes 99 steps, and this run has 2: it ends before training" in out
    assert "\ndone, pretrained only: " in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "mnist"], "argument --data: invalid choice: 'mnist'"),
        (["--preset", "huge"], "argument --preset: invalid choice: 'huge'"),
        (["--gradient", "exact"], "argument --gradient: invalid choice: 'exact'"),
        (["--checkpoint-every", "0"], "must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", "mdeq", "--out", str(tmp_path / "run"), *options])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "equilibrium.damping=0.5"], "error: damping applies to neumann, unrolled"),
        (["--seed", "4294967296"], "error: seed must be at most 4294967295; got 4294967296"),
        (["--epochs", "few"], "error: training.epochs must be a whole number; got 'few'"),
        (["--epochs", "3", "--set", "training.epochs=3"], "--set training.epochs are the same"),
        (["--set", "training.lr=1"], "no setting is called 'training.lr'; there are: task"),
        (["--set", "lerning_rate=1"], "'lerning_rate', but training.learning_rate; there are"),
        (["--set", "model.epoch=1"], "'model.epoch', but training.epochs"),
        (["--set", "training.epochs"], "a setting is NAME=VALUE"),
        (["--set", "model.dropout=much"], "error: model.dropout must be a number; got 'much'"),
        (["--solver", "anderson"], "but the solver is anderson; choose broyden"),
        (["--resume"], "to resume from; leave out --resume to start a run"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "mdeq", "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize(
    ("required", "status", "message"),
    [(0.0, 0, ""), (1.01, 1, "error: the accuracy is below 101%")],
)
def test_demo(
    required: float,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "REQUIRED_ACCURACY", required)
    short = {
        "training.pretraining_steps": 0,
        "training.epochs": 1,
        "training.batch_size": 16,
        "equilibrium.forward_steps": 4,
        "equilibrium.backward_steps": 4,
    }
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, **short})
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    for gradient in GRADIENTS:
        assert f"\n{gradient} " in captured.out
    assert "accuracy on digits held out for the test" in captured.out
    assert "mean solver steps per image: 4.0" in captured.out
    assert str(out / "training.png") in captured.out
    assert (out / "training.png").exists()


def test_demo_refuses_a_used_folder_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.safetensors").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} already holds a run; choose another --out\n"
    )
