"""One JSON object per epoch, one per line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deq_zoo.files import write_atomically
from deq_zoo.json_text import parse_json
from deq_zoo.measure import MEASURES, MeasureName
from deq_zoo.typed import read_dataclass

_OPTIONAL = ("jacobian_penalty", "solver_steps", "converged")


@dataclass(frozen=True, kw_only=True)
class PartMetrics:
    """Averages over the training or the validation data of one epoch.

    Attributes:
        loss: mean of the task's loss.
        measure: what the task is judged by, such as its accuracy.
        value: of the measure.
        jacobian_penalty: mean of ‖∂f/∂z‖_F² / d in the steps that were regularised; None without.
        solver_steps: mean evaluations of the cell per sample in the forward solve; None where
            nothing was solved.
        converged: share of samples whose solve met the tolerance; None where nothing was solved.
    """

    loss: float
    measure: MeasureName
    value: float
    jacobian_penalty: float | None = None
    solver_steps: float | None = None
    converged: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """All numbers by name; the value under the name of its measure."""
        return {
            "loss": self.loss,
            self.measure: self.value,
            **{name: getattr(self, name) for name in _OPTIONAL},
        }

    def format_value(self) -> str:
        """The value with the name of its measure."""
        return MEASURES[self.measure].format(self.value)


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch did.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps done so far.
        phase: "pretrain" or "equilibrium", at its end.
        learning_rate: of the last step of the epoch.
        seconds: wall-clock time of the epoch, validation included.
        train, validation: averages over the data.
    """

    epoch: int
    step: int
    phase: str
    learning_rate: float
    seconds: float
    train: PartMetrics
    validation: PartMetrics


def read_metrics(path: Path) -> list[EpochMetrics]:
    """All lines of the file, in order.

    Raises:
        ValueError: a line is not what `write_metrics` writes.
    """
    text = path.read_text(encoding="utf-8")
    return [_parse(line, f"{path}:{i}") for i, line in enumerate(text.splitlines(), start=1)]


def write_metrics(path: Path, epochs: Iterable[EpochMetrics]) -> None:
    """Write one line per epoch; a crash leaves either the old file or the new one."""
    write_atomically(path, "".join(map(_format, epochs)).encode())


def _format(metrics: EpochMetrics) -> str:
    parts = {"train": metrics.train.to_json(), "validation": metrics.validation.to_json()}
    own = {field.name: getattr(metrics, field.name) for field in fields(metrics)}
    return json.dumps({**own, **parts}, allow_nan=False) + "\n"


def _parse(line: str, where: str) -> EpochMetrics:
    try:
        values = parse_json(line)
        parts = {part: _with_measure(values[part]) for part in ("train", "validation")}
        return read_dataclass(EpochMetrics, {**values, **parts}, where)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} does not hold the metrics of an epoch: {line[:200]!r}"
        ) from error


def _with_measure(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `PartMetrics` from what its `to_json` returned."""
    (name,) = MEASURES.keys() & values.keys()
    others = {key: value for key, value in values.items() if key != name}
    return {**others, "measure": name, "value": values[name]}
