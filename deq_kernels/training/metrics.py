"""One JSON object per epoch, one per line."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deq_kernels.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class PartMetrics:
    """Averages over the training or the validation data of one epoch.

    Attributes:
        loss: mean of the task's loss.
        headline: the number that the task is judged by, such as its accuracy.
        jacobian_penalty: mean of ‖∂f/∂z‖_F² / d in the steps that were regularised; None without.
        solver_steps: mean evaluations of the cell per sample in the forward solve; None where
            nothing was solved.
        converged: share of samples whose solve met the tolerance; None where nothing was solved.
    """

    loss: float
    headline: float
    jacobian_penalty: float | None = None
    solver_steps: float | None = None
    converged: float | None = None


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
    return json.dumps(asdict(metrics), allow_nan=False) + "\n"


def _parse(line: str, where: str) -> EpochMetrics:
    try:
        values = json.loads(line)
        train = PartMetrics(**values.pop("train"))
        validation = PartMetrics(**values.pop("validation"))
        return EpochMetrics(**values, train=train, validation=validation)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} does not hold the metrics of an epoch: {line!r}") from error
