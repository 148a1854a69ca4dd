"""The metrics for TensorBoard, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deq_zoo.metrics import EpochMetrics, PartMetrics

FOLDER = "tensorboard"


class TensorBoard:
    """Writes one point per epoch and number to a folder; nothing without TensorBoard.

    Args:
        folder: of the event files, created if needed.
        step: optimiser steps done so far; points after them are from a run that was stopped.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._writer = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, metrics: EpochMetrics) -> None:
        """Add an epoch."""
        if self._writer is None:
            return
        for part in ("train", "validation"):
            average: PartMetrics = getattr(metrics, part)
            for name, value in average.to_json().items():
                if value is not None:
                    self._writer.add_scalar(f"{part}/{name}", value, metrics.step)
        self._writer.add_scalar("learning_rate", metrics.learning_rate, metrics.step)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
