"""Presets, and the resolved configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deq_zoo.config import TrainingConfig
from deq_zoo.equilibrium import EquilibriumConfig
from deq_zoo.machine import MachineConfig
from deq_zoo.settings import settings_of


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and how it is trained.

    Attributes:
        model: the model's config, a frozen dataclass.
        training: optimiser, schedule and so on.
        equilibrium: solvers and gradient.
        data: name of the dataset that the preset is for.
    """

    model: Any
    training: TrainingConfig
    equilibrium: EquilibriumConfig
    data: str


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the outcome of a run.

    Two runs with equal configs, on equal data, give the same bits on one kind of processor.

    Attributes:
        task: the model's name in the registry.
        preset: the preset the others began as.
        data: name of the dataset.
        model: the model's config, a frozen dataclass.
        training: see `TrainingConfig`.
        equilibrium: see `EquilibriumConfig`.
        machine: see `MachineConfig`.
    """

    task: str
    preset: str
    data: str
    model: Any
    training: TrainingConfig
    equilibrium: EquilibriumConfig
    machine: MachineConfig = field(default_factory=MachineConfig)

    def to_json(self) -> dict[str, Any]:
        """Every setting by its dotted name, as JSON values."""
        values = settings_of(self).items()
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values}
