"""The committed training result is of the present recipe, and shows what the documentation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deq_zoo.registry import run_config

RESULT = Path(__file__).resolve().parents[3] / "benchmarks/results/transformer/pydoc.json"
VARIES = {"model.vocabulary"}
"""Between Python releases."""


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", ["recipe", "without_regularisation"])
def test_it_is_of_the_present_recipe(result: dict[str, Any], name: str) -> None:
    run = result["runs"][name]
    expected = run_config("transformer", settings=run["settings"]).to_json()
    assert len(run["epochs"]) == expected["training.epochs"]
    for setting, value in run["config"].items():
        assert setting in VARIES or expected[setting] == value, setting


def test_it_beats_both_baselines(result: dict[str, Any]) -> None:
    for split in ("validation", "test"):
        baselines = result["ngram_perplexities"][split]
        for run in result["runs"].values():
            assert run[split]["perplexity"] < min(baselines.values())


def test_regularised_solves_are_shorter(result: dict[str, Any]) -> None:
    for split in ("validation", "test"):
        steps, plain_steps = (
            result["runs"][name][split]["solver_steps"]
            for name in ("recipe", "without_regularisation")
        )
        assert steps < 0.8 * plain_steps
