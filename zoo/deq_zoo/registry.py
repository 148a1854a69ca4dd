"""The models that can be trained, by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deq_zoo.presets import RunConfig
from deq_zoo.settings import with_settings
from deq_zoo.task import Task


@dataclass(frozen=True)
class Entry:
    """A model that can be trained.

    Attributes:
        module: that defines its task.
        task: name of the subclass of `Task` in it.
        summary: one line for `--help`.
    """

    module: str
    task: str
    summary: str


MODELS: Mapping[str, Entry] = {
    "mdeq": Entry("deq_zoo.tasks.mdeq", "MDEQTask", "multiscale DEQ, classifies images"),
    "ignn": Entry(
        "deq_zoo.tasks.ignn",
        "IGNNTask",
        "implicit graph network, classifies graphs or their nodes",
    ),
    "transformer": Entry(
        "deq_zoo.tasks.transformer",
        "TransformerTask",
        "DEQ-Transformer, predicts the next word",
    ),
}


FIXED = ("task", "preset", "data")
"""What a run is about, which no setting changes."""


def find_task(name: str) -> type[Task]:
    """The task of a model.

    Raises:
        ValueError: no model has this name.
    """
    _one_of("model", name, MODELS)
    entry = MODELS[name]
    task = getattr(importlib.import_module(entry.module), entry.task)
    assert issubclass(task, Task)
    return task


def run_config(
    name: str,
    *,
    preset: str | None = None,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """A preset with some settings changed.

    Another gradient than the preset's takes the defaults of its own options.

    Args:
        name: of the model, see `MODELS`.
        preset: its name; None: the model's first.
        data: a dataset of the model; None: the preset's.
        settings: by dotted name (model.dropout, training.epochs, equilibrium.rtol,
            machine.threads); strings are read as the setting's type.

    Raises:
        ValueError: a name is unknown, or a value is refused.
    """
    task = find_task(name)
    chosen = next(iter(task.presets)) if preset is None else preset
    _one_of(f"preset of {name}", chosen, task.presets)
    begin = task.presets[chosen]
    dataset = begin.data if data is None else data
    _one_of(f"dataset of {name}", dataset, task.datasets)
    changes = dict(settings or {})
    if fixed := [name for name in FIXED if name in changes]:
        raise ValueError(f"{', '.join(fixed)} cannot be set; name a model, preset or dataset.")
    equilibrium = begin.equilibrium
    gradient = changes.get("equilibrium.gradient", equilibrium.gradient)
    if gradient != equilibrium.gradient:
        # The two depend on each other, and are checked together.
        equilibrium = equilibrium.with_gradient(
            gradient, solver=changes.pop("equilibrium.solver", equilibrium.solver)
        )
    config = RunConfig(
        task=name,
        preset=chosen,
        data=dataset,
        model=task.model_for(begin.model, dataset),
        training=begin.training,
        equilibrium=equilibrium,
    )
    return with_settings(config, changes)


def config_from_json(values: Mapping[str, Any]) -> RunConfig:
    """The config that `RunConfig.to_json` wrote.

    Raises:
        ValueError: it is not what this version writes.
    """
    try:
        fixed = {name: values[name] for name in FIXED}
        config = run_config(fixed["task"], preset=fixed["preset"], data=fixed["data"])
        if values.keys() != config.to_json().keys():
            expected = ", ".join(config.to_json())
            raise ValueError(f"it must hold {expected}; got {', '.join(values)}")
        settings = {name: value for name, value in values.items() if name not in FIXED}
        return with_settings(config, settings)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"this is no config of a run of this version: {error}") from error


def _one_of(what: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise ValueError(f"no {what} is called {name!r}; there are: {', '.join(known)}.")
