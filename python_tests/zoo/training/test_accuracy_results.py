"""The committed accuracies are of the present recipes, and show what the documentation says."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import is_clean
from deq_zoo.registry import run_config

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
UNROLLED = {"equilibrium.gradient_steps": 5}
GRADIENTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "mdeq/digits": [
        ("implicit", {}),
        ("shine", {}),
        ("unrolled", {**UNROLLED, "equilibrium.damping": 0.5}),
    ],
    "ignn/chains": [
        ("implicit", {}),
        ("jfb", {}),
        *[
            ("unrolled", {**UNROLLED, "equilibrium.damping": damping})
            for damping in (0.5, 0.8, 1.0)
        ],
    ],
}


def load(name: str) -> dict[str, Any]:
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.mark.parametrize("name", GRADIENTS)
def test_they_are_of_the_present_recipe(name: str) -> None:
    report = load(name)
    model, _, preset = name.partition("/")
    assert report["config"] == run_config(model, preset=preset).to_json()
    assert is_clean(report["commit"])
    made = [(run["seed"], (run["gradient"], run["settings"])) for run in report["runs"]]
    assert made == [(seed, variant) for seed in range(5) for variant in GRADIENTS[name]]


def test_every_gradient_learns_the_digits() -> None:
    by_seed = defaultdict(list)
    for run in load("mdeq/digits")["runs"]:
        by_seed[run["seed"]].append(run["test_score"])
    for scores in by_seed.values():
        assert min(scores) >= 0.97
        assert max(scores) - min(scores) <= 0.01


def test_exact_and_unrolled_gradients_learn_the_chains() -> None:
    for run in load("ignn/chains")["runs"]:
        assert run["gradient"] == "jfb" or run["test_score"] >= 0.95
