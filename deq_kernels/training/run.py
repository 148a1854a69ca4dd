"""A training run and the folder it writes to."""

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from deq_kernels.data import Digits
from deq_kernels.data.optional import optional_import
from deq_kernels.training.checkpoint import load_checkpoint, save_checkpoint
from deq_kernels.training.choices import build_model, load_data
from deq_kernels.training.config import TrainingConfig
from deq_kernels.training.loop import Trainer
from deq_kernels.training.metrics import EpochMetrics, read_metrics, write_metrics
from deq_kernels.training.plots import plot_training
from deq_kernels.training.threads import use_threads

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
    uninterrupted one.

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
        RunFolderError: the folder holds a run and `resume` is False.
        CheckpointError: the checkpoint is missing, damaged, or of another config.
        FloatingPointError: the loss is not finite.
        ValueError: an option of the config is unknown or out of range.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    with optional_import(extra="train"):
        # Fail now rather than at the first checkpoint or at the plot.
        for name in ("matplotlib", "safetensors"):
            importlib.import_module(name)
    if not resume:
        check_folder(out)
    torch.manual_seed(config.seed)
    trainer = Trainer(build_model(config), load_data(config) if data is None else data, config)
    if resume:
        trainer.restore(load_checkpoint(out / CHECKPOINT), history=read_metrics(out / METRICS))
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
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
        RunFolderError: it holds a run.
    """
    if (out / CONFIG).exists():
        raise RunFolderError(f"{out} already holds a run; resume it or choose another folder")
