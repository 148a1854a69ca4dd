"""Accuracies by gradient and seed: what is planned, written, and kept of runs made before."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not all(map(find_spec, ("safetensors", "matplotlib", "tqdm"))):
    pytest.skip("training needs the packages of the zoo", allow_module_level=True)

from benchmarks import accuracy
from deq_zoo.registry import run_config
from deq_zoo.run import run_training

SHORT = ["--set", "training.epochs=1", "--set", "training.repeats=1"]
UNROLLED = ["--gradient", "unrolled", "equilibrium.damping=0.8"]
COMMIT = "0123456789ab"


def measure(out: Path, *options: str) -> int:
    return accuracy.main(["ignn/chains", *SHORT, *options, "--out", str(out)])


def read(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(autouse=True)
def clean_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "commit_of_checkout", lambda besides: COMMIT)


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        accuracy.main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for option in ("--gradient", "--seeds", "--set", "--data-root", "--out", "--overwrite"):
        assert option in text
    assert "examples:" in text


def test_a_run_is_that_of_the_training_room(tmp_path: Path) -> None:
    out = tmp_path / "chains.json"
    assert measure(out, *UNROLLED, "--seeds", "3") == 0
    report = read(out)
    (run,) = report["runs"]
    settings = {"training.epochs": 1, "training.repeats": 1}
    assert report["config"] == run_config("ignn", preset="chains", settings=settings).to_json()
    own = {"equilibrium.gradient": "unrolled", "equilibrium.damping": 0.8, "training.seed": 3}
    config = run_config("ignn", preset="chains", settings={**settings, **own})
    trainer = run_training(config, tmp_path / "run")
    test = trainer.evaluate("test")
    assert run["test_score"] == test.value
    assert run["test_loss"] == test.loss
    assert run["solver_steps"] == test.solver_steps
    assert run["validation_score"] == trainer.history[-1].validation.value
    assert (run["gradient"], run["settings"]) == ("unrolled", {"equilibrium.damping": 0.8})
    assert report["commit"] == COMMIT
    assert report["score"] == "micro_f1"
    assert report["machine"]["threads"] == 1
    assert report["versions"]["torch"]


def test_runs_made_before_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chains.json"
    assert measure(out, "--seeds", "0") == 0
    first = read(out)
    assert measure(out, "--gradient", "implicit", *UNROLLED, "--seeds", "0", "1") == 0
    text = capsys.readouterr().out
    assert f"runs in {out}: 1; to be made: 3" in text
    assert "[3/3] unrolled (damping 0.8), seed 1: test micro_f1" in text
    report = read(out)
    assert report["runs"][0] == first["runs"][0]
    made = [(run["seed"], run["gradient"]) for run in report["runs"]]
    assert made == [(0, "implicit"), (0, "unrolled"), (1, "implicit"), (1, "unrolled")]
    assert len(report["commands"]) == 2
    assert report["date"] == first["date"]


def test_runs_of_other_code_are_not_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chains.json"
    assert measure(out, "--seeds", "0") == 0
    before = out.read_bytes()
    assert measure(out, "--set", "training.learning_rate=0.1") == 2
    assert "made otherwise (config: " in capsys.readouterr().err
    monkeypatch.setattr(accuracy, "commit_of_checkout", lambda besides: "another")
    assert measure(out) == 2
    assert "commit: 0123456789ab, now another" in capsys.readouterr().err
    assert out.read_bytes() == before
    monkeypatch.setattr(accuracy, "commit_of_checkout", lambda besides: "another-dirty")
    assert measure(out, "--seeds", "1", "--overwrite") == 0
    assert "warning: the commit is another-dirty" in capsys.readouterr().err
    assert [run["seed"] for run in read(out)["runs"]] == [1]
    assert measure(out, "--seeds", "2") == 2
    assert "holds runs of another-dirty, whose code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mdeq"], "a problem is MODEL/PRESET, such as mdeq/digits; got 'mdeq'"),
        (["mdeq/letters"], "no preset of mdeq is called 'letters'"),
        (["mdeq/digits", "--gradient", "exact"], "equilibrium.gradient|gradient must be"),
        (["mdeq/digits", "--gradient", "implicit", "equilibrium.damping=1"], "damping applies to"),
        (["mdeq/digits", "--set", "training.seed=1"], "training.seed is what --seeds is for"),
        (["mdeq/digits", "--seeds", "1", "1"], "the seed 1 comes twice"),
        (["mdeq/digits", "--seeds", "0", str(2**32)], "seed must be at most"),
        (["mdeq/digits", "--gradient", "jfb", "--gradient", "jfb"], "comes twice; give it once"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "none.json"
    assert accuracy.main([*options, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), error
    assert not out.exists()


def test_the_folder_of_the_file_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(tmp_path / "no" / "x.json") == 2
    assert "--out is a file in a folder that is there" in capsys.readouterr().err


def test_a_file_that_is_no_report_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "other.json"
    out.write_text('{"schema": 1}', encoding="utf-8")
    assert measure(out) == 2
    assert "has the schema 1, not 2; choose another --out" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == '{"schema": 1}'
