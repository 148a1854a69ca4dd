"""A training run and the folder it writes to."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from deq_kernels.data import Digits
from deq_kernels.files import write_atomically
from deq_kernels.optional import require_packages
from deq_kernels.threads import use_threads
from deq_kernels.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from deq_kernels.training.choices import build_model, load_data
from deq_kernels.training.config import TrainingConfig
from deq_kernels.training.loop import Trainer
from deq_kernels.training.metrics import EpochMetrics, read_metrics, write_metrics
from deq_kernels.training.plots import plot_training

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
PLOT = "training.png"


class RunFolderError(ValueError):
    """The output folder does not suit the run."""


def run_training(
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 1,
    data: Digits | None = None,
    on_start: Callable[[Trainer], object] | None = None,
    on_step: Callable[[], object] | None = None,
    on_epoch: Callable[[EpochMetrics], object] | None = None,
) -> Trainer:
    """Train as the config says, writing config, metrics, checkpoint and plot to one folder.

    Seeds PyTorch's global generator with `config.seed`. A resumed run gives the same bits as an
    uninterrupted one with the same version of PyTorch, the same instruction set and the same
    number of threads. A folder whose run was stopped before its first checkpoint may be used again.

    Args:
        config: the options that decide the outcome.
        out: the folder, created if needed; nothing is written elsewhere.
        resume: continue from the checkpoint in the folder instead of starting anew.
        checkpoint_every: epochs between two checkpoints; the last epoch always writes one.
        data: images to use instead of the dataset that the config names.
        on_start: called once before the first epoch, after the checkpoint has been restored.
        on_step: called after every step of the optimiser.
        on_epoch: called after every epoch.

    Returns:
        The trainer, holding the trained model.

    Raises:
        ImportError: a package of the extra `train` is not installed.
        RunFolderError: the folder holds the checkpoint of a run and `resume` is False.
        CheckpointError: the checkpoint is missing, damaged, or of another config, or the metrics of
            the epochs before it are not all there.
        OSError: the folder cannot be written to.
        FloatingPointError: the loss is not finite.
        ValueError: an option of the config is unknown or out of range.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    require_packages("matplotlib", "safetensors", extra="train")
    if not resume:
        check_folder(out)
    torch.manual_seed(config.seed)
    trainer = Trainer(build_model(config), load_data(config) if data is None else data, config)
    if resume:
        trainer.restore(load_checkpoint(out / CHECKPOINT), history=_read_history(out / METRICS))
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / CONFIG, (json.dumps(asdict(config), indent=2) + "\n").encode())
    if on_start is not None:
        on_start(trainer)
    with use_threads(config.threads):
        while trainer.epoch < config.total_epochs:
            metrics = trainer.run_epoch(on_step=on_step)
            write_metrics(out / METRICS, trainer.history)
            if trainer.epoch % checkpoint_every == 0 or trainer.epoch == config.total_epochs:
                save_checkpoint(out / CHECKPOINT, trainer.checkpoint())
            if on_epoch is not None:
                on_epoch(metrics)
    plot_training(trainer.history, out / PLOT)
    return trainer


def check_folder(out: Path) -> None:
    """Make sure that a new run can be written to a folder.

    Raises:
        RunFolderError: it holds the checkpoint of a run.
    """
    if (out / CHECKPOINT).exists():
        raise RunFolderError(f"{out} already holds a run")


def _read_history(path: Path) -> list[EpochMetrics]:
    try:
        return read_metrics(path)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(
            "a run is resumed with the metrics of its finished epochs, but they cannot be read "
            f"({error}); start the run anew in another folder"
        ) from error
