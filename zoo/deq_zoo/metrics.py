"""One JSON object per epoch, one per line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deq_zoo.files import write_atomically
from deq_zoo.json_text import parse_json
from deq_zoo.measure import MEASURES, Measure

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
    measure: Measure
    value: float
    jacobian_penalty: float | None = None
    solver_steps: float | None = None
    converged: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """All numbers by name; the value under the name of its measure."""
        return {
            "loss": self.loss,
            self.measure.name: self.value,
            **{name: getattr(self, name) for name in _OPTIONAL},
        }

    def format_value(self) -> str:
        """The value with the name of its measure."""
        return self.measure.format(self.value)


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
        train, validation = (_parse_part(values.pop(part)) for part in ("train", "validation"))
        own = _checked(values, whole=("epoch", "step"), text=("phase",))
        return EpochMetrics(**own, train=train, validation=validation)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} does not hold the metrics of an epoch: {line[:200]!r}"
        ) from error


def _parse_part(values: dict[str, Any]) -> PartMetrics:
    (name,) = MEASURES.keys() & values.keys()
    checked = _checked(values, whole=(), text=())
    return PartMetrics(measure=MEASURES[name], value=checked.pop(name), **checked)


def _checked(
    values: dict[str, Any], *, whole: tuple[str, ...], text: tuple[str, ...]
) -> dict[str, Any]:
    """The values, all of them numbers, or None where that is allowed, but for those named."""
    for name, value in values.items():
        kinds: tuple[type, ...] = (
            (str,) if name in text else (int,) if name in whole else (int, float)
        )
        absent = value is None and name in _OPTIONAL
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not absent and not (fits and (name in text or abs(value) < 2**1000)):
            raise ValueError(f"{name} is {value!r}")
    return values
