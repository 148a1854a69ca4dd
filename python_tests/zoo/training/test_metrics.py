"""Metrics survive the way to the file and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deq_zoo.metrics import EpochMetrics, PartMetrics, read_metrics, write_metrics

PRETRAIN = EpochMetrics(
    epoch=1,
    step=23,
    phase="pretrain",
    learning_rate=1e-3,
    seconds=0.5,
    train=PartMetrics(loss=1.0 / 3.0, measure="accuracy", value=0.5),
    validation=PartMetrics(loss=0.1, measure="accuracy", value=0.75),
)
SOLVED = PartMetrics(
    loss=0.01, measure="accuracy", value=1.0, jacobian_penalty=0.5, solver_steps=12.5, converged=0.9
)
EQUILIBRIUM = replace(
    PRETRAIN, epoch=2, step=46, phase="equilibrium", train=SOLVED, validation=SOLVED
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [PRETRAIN, EQUILIBRIUM])
    assert read_metrics(path) == [PRETRAIN, EQUILIBRIUM]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[1]["validation"]["solver_steps"] == 12.5
    assert lines[1]["validation"]["accuracy"] == 1.0
    write_metrics(path, [PRETRAIN])
    assert read_metrics(path) == [PRETRAIN]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_value_is_stored_under_the_name_of_its_measure(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    part = PartMetrics(loss=2.0, measure="perplexity", value=7.5)
    write_metrics(path, [replace(PRETRAIN, train=part, validation=part)])
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["train"]["perplexity"] == 7.5
    assert read_metrics(path)[0].train == part
    for strange in ({"other": 7.5}, {"perplexity": 7.5, "accuracy": 0.5}):
        path.write_text(json.dumps({**stored, "train": {"loss": 2.0, **strange}}))
        with pytest.raises(ValueError, match="does not hold the metrics"):
            read_metrics(path)


@pytest.mark.parametrize("line", ["not json", "3", "{}", '{"epoch": 1, "train": {}}'])
def test_a_strange_line_names_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [PRETRAIN])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 does not hold the metrics"):
        read_metrics(path)


def test_numbers_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_metrics(tmp_path / "metrics.jsonl", [replace(PRETRAIN, seconds=float("nan"))])
