"""One JSON object per epoch, one per line."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deq_kernels.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class PartMetrics:
    """Averages over the training or the validation images of one epoch.

    Attributes:
        loss: mean cross entropy.
        accuracy: share of images classified correctly.
        solver_steps: mean evaluations of the cell per image in the forward solve; None while
            pretraining.
        converged: share of images whose solve met the tolerance; None while pretraining.
    """

    loss: float
    accuracy: float
    solver_steps: float | None
    converged: float | None


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch did.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps done so far.
        phase: "pretrain" or "equilibrium".
        learning_rate: of the last step of the epoch.
        seconds: wall-clock time of the epoch, validation included.
        train, validation: averages over the images.
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
