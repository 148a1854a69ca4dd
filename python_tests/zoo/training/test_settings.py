"""Settings by dotted name: typed, checked, and the same after a way through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deq_zoo import registry
from deq_zoo.presets import RunConfig
from deq_zoo.registry import MODELS, config_from_json, find_task, run_config
from deq_zoo.settings import parse_settings, settings_of, with_settings

CONFIG = run_config("mdeq")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("training.epochs", "3", 3),
        ("training.learning_rate", "2e-3", 2e-3),
        ("training.learning_rate", 1, 1.0),
        ("training.nesterov", "false", False),
        ("training.clip_norm", "0.25", 0.25),
        ("training.clip_norm", "none", None),
        ("training.clip_norm", None, None),
        ("machine.compile", "True", True),
        ("machine.device", "cuda:1", "cuda:1"),
        ("equilibrium.solver", "adjoint_broyden", "adjoint_broyden"),
        ("model.image_size", "8,8", (8, 8)),
        ("model.image_size", [8, 8], (8, 8)),
        ("model.channels", "8, 24", (8, 24)),
        ("training.decay_epochs", "", ()),
    ],
)
def test_values(name: str, text: Any, expected: object) -> None:
    value = settings_of(with_settings(CONFIG, {name: text}))[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("training.lr", "1", r"no setting is called 'training\.lr'; there are: .*training\.epochs"),
        ("epochs", "1", "no setting is called 'epochs'"),
        ("training", "1", "no setting is called 'training'"),
        ("training.epochs", "1.5", r"training\.epochs must be a whole number; got '1.5'"),
        ("training.epochs", True, r"training\.epochs must be a whole number; got True"),
        ("training.epochs", "none", r"training\.epochs must be a whole number; got 'none'"),
        ("training.nesterov", "2", r"training\.nesterov must be true or false; got '2'"),
        ("training.clip_norm", "much", r"training\.clip_norm must be a number, or none; got"),
        ("training.optimizer", "lion", r"training\.optimizer must be one of adam, sgd; got 'lion'"),
        ("model.image_size", "8", r"must be 2 values separated by commas, each a whole number"),
        ("model.channels", "8,x", r"must be values separated by commas, each a whole number"),
        ("model.dropout", "1.5", r"dropout must lie in \[0, 1\), got 1.5"),
    ],
)
def test_values_that_cannot_be(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(CONFIG, {name: value})


def test_settings_of_one_section_are_checked_together() -> None:
    settings = {"training.optimizer": "sgd", "training.momentum": "0.9"}
    assert with_settings(CONFIG, settings).training.momentum == 0.9


def test_texts() -> None:
    assert parse_settings(["a.b=1", "c=d=e", "f="]) == {"a.b": "1", "c": "d=e", "f": ""}
    for texts, message in (
        (["a.b"], "a setting is NAME=VALUE"),
        (["=1"], "a setting is NAME=VALUE"),
        (["a=1", "a=2"], "the setting a comes twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_settings(texts)


def _presets() -> list[tuple[str, str]]:
    return [(name, preset) for name in MODELS for preset in find_task(name).presets]


@pytest.mark.parametrize(("name", "preset"), _presets())
def test_every_preset_survives_json(name: str, preset: str) -> None:
    config = run_config(name, preset=preset)
    assert config.data in find_task(name).datasets
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def test_changed_configs_survive_json() -> None:
    settings = {"equilibrium.gradient": "neumann", "equilibrium.damping": 0.3, "machine.threads": 2}
    config = run_config("mdeq", preset="cifar10_large_upg", data="cifar10", settings=settings)
    assert config.equilibrium.gradient_steps is None, "that of the preset's gradient"
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "change", [{"training.new": 1}, {"training.epochs": "x"}, {"task": "vgg"}, {"preset": "huge"}]
)
def test_configs_of_another_version(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no config of a run of this version"):
        config_from_json({**CONFIG.to_json(), **change})
    short = CONFIG.to_json()
    del short["training.epochs"]
    with pytest.raises(ValueError, match="no config of a run of this version"):
        config_from_json(short)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "no preset of mdeq is called 'huge'; there are: digits"),
        ({"data": "mnist"}, "no dataset of mdeq is called 'mnist'; there are: digits"),
        ({"settings": {"data": "digits"}}, "data cannot be set"),
        ({"settings": {"equilibrium.gradient": "exact"}}, "gradient must be one of 'implicit'"),
    ],
)
def test_names_that_are_unknown(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_config("mdeq", **options)
    with pytest.raises(ValueError, match="no model is called 'vgg'; there are: mdeq"):
        find_task("vgg")


def test_a_gradient_and_the_solver_that_it_needs_are_set_together() -> None:
    base = run_config("mdeq", settings={"equilibrium.gradient": "jfb"})
    assert base.equilibrium.gradient == "jfb"
    settings = {"equilibrium.gradient": "jfb", "equilibrium.solver": "anderson"}
    assert run_config("mdeq", settings=settings).equilibrium.solver == "anderson"


def test_another_dataset_changes_the_model() -> None:
    config: RunConfig = run_config("mdeq", preset="cifar10_tiny", data="digits")
    assert config.model.state_dim == 1920
    assert (config.model.image_channels, config.model.classes) == (1, 10)
    with pytest.raises(ValueError, match="multiples of 32"):
        run_config("mdeq", preset="imagenet_small", data="digits")


def test_a_model_is_imported_when_it_is_asked_for() -> None:
    entry = registry.Entry("deq_zoo.tasks.missing", "Missing", "never imported")
    assert "missing" not in registry.MODELS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "MODELS", {**registry.MODELS, "missing": entry})
        assert run_config("mdeq").task == "mdeq"
        with pytest.raises(ModuleNotFoundError, match="missing"):
            find_task("missing")
