"""A trained model on data that it was not trained with."""

from __future__ import annotations

from pathlib import Path

import torch

from deq_zoo.checkpoint import CheckpointError, load_checkpoint
from deq_zoo.loop import Trainer
from deq_zoo.metrics import PartMetrics
from deq_zoo.presets import RunConfig
from deq_zoo.registry import config_from_json, find_task
from deq_zoo.settings import with_settings
from deq_zoo.threads import use_threads


def evaluate_checkpoint(
    path: Path,
    *,
    split: str = "test",
    data_root: str | None = None,
    device: str | None = None,
) -> tuple[RunConfig, PartMetrics]:
    """Build what a checkpoint holds, and average over a split.

    Args:
        path: of the checkpoint; its config says what model and what data.
        split: "test" or "validation".
        data_root: folder of a dataset that is read from disk.
        device: where to compute; None: as in training.

    Returns:
        The config of the run, and the averages.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another version.
        OSError, ValueError: the dataset cannot be read.
    """
    checkpoint = load_checkpoint(path)
    values = {name: value for name, value in checkpoint.config.items() if name != "processes"}
    try:
        config = config_from_json(values)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be evaluated: {error}") from error
    if device is not None:
        config = with_settings(config, {"machine.device": device})
    with use_threads(config.machine.threads):
        torch.manual_seed(config.training.seed)
        try:
            task = find_task(config.task).build(config, data_root=data_root)
            trainer = Trainer(task, config)
        # Sizes that no memory or no number holds, which the config's own checks do not know.
        except (MemoryError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"the model of {path} cannot be built: {error}") from error
        trainer.load_model(checkpoint)
        return config, trainer.evaluate(split)
