"""A training run and the folder it writes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from deq_zoo.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from deq_zoo.files import write_atomically
from deq_zoo.folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    PLOT,
    RunFolderError,
    check_folder,
    claimed_folder,
)
from deq_zoo.loop import Trainer
from deq_zoo.metrics import EpochMetrics, read_metrics, write_metrics
from deq_zoo.plots import plot_training
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, Processes
from deq_zoo.registry import find_task
from deq_zoo.task import Task
from deq_zoo.tensorboard import FOLDER as TENSORBOARD
from deq_zoo.tensorboard import TensorBoard
from deq_zoo.threads import use_threads


def run_training(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 1,
    data_root: str | None = None,
    processes: Processes = ALONE,
    build: Callable[[RunConfig], Task] | None = None,
    on_start: Callable[[Trainer], object] | None = None,
    on_step: Callable[[], object] | None = None,
    on_epoch: Callable[[EpochMetrics], object] | None = None,
) -> Trainer:
    """Train as the config says, writing config, metrics, checkpoint and plot to one folder.

    Seeds PyTorch's global generator with the config's seed. A resumed run gives the same bits as an
    uninterrupted one with the same version of PyTorch, the same instruction set and the same
    number of threads. A folder whose run was stopped before its first checkpoint may be used again;
    one run at a time writes to a folder.

    Args:
        config: the options that decide the outcome.
        out: the folder, created if needed; nothing is written elsewhere.
        resume: continue from the checkpoint in the folder instead of starting anew.
        checkpoint_every: epochs between two checkpoints; the last epoch always writes one.
        data_root: folder of a dataset that is read from disk.
        processes: that train together, each calling this with the same arguments but for its rank;
            the first one writes the files. Validation is done by each of them.
        build: makes the task; None: what is registered for the config.
        on_start: called once before the first epoch, after the checkpoint has been restored.
        on_step: called after every step of the optimiser.
        on_epoch: called after every epoch.

    Returns:
        The trainer, holding the trained model.

    Raises:
        RunFolderError: the folder holds the checkpoint of a run and `resume` is False, or another
            run is writing to it.
        CheckpointError: the checkpoint is missing, damaged, or of another config, or the metrics of
            the epochs before it are not all there.
        OSError: the folder cannot be written to, or the dataset cannot be read.
        FloatingPointError: the loss is not finite.
        ValueError: an option of the config is unknown or out of range.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    if not resume:
        check_folder(out)
    training = config.training
    with _claimed(out, config, processes, resume=resume), use_threads(config.machine.threads):
        torch.manual_seed(training.seed)
        if build is None:
            task = find_task(config.task).build(config, data_root=data_root, processes=processes)
        else:
            task = build(config)
        trainer = Trainer(task, config, processes=processes)
        if resume:
            trainer.restore(_read_checkpoint(out), history=_read_history(out / METRICS))
        elif processes.rank == 0:
            text = json.dumps(config.to_json(), indent=2) + "\n"
            write_atomically(out / CONFIG, text.encode())
        if on_start is not None:
            on_start(trainer)
        if processes.rank == 0:
            _train_and_write(trainer, out, checkpoint_every, on_step, on_epoch)
        else:
            while trainer.epoch < training.epochs:
                trainer.run_epoch()
    return trainer


def _train_and_write(
    trainer: Trainer,
    out: Path,
    checkpoint_every: int,
    on_step: Callable[[], object] | None,
    on_epoch: Callable[[EpochMetrics], object] | None,
) -> None:
    epochs = trainer.config.training.epochs
    board = TensorBoard(out / TENSORBOARD, step=trainer.step)
    try:
        while trainer.epoch < epochs:
            metrics = trainer.run_epoch(on_step=on_step)
            write_metrics(out / METRICS, trainer.history)
            board.write(metrics)
            if trainer.epoch % checkpoint_every == 0 or trainer.epoch == epochs:
                save_checkpoint(out / CHECKPOINT, trainer.checkpoint())
            if on_epoch is not None:
                on_epoch(metrics)
    finally:
        board.close()
    plot_training(trainer.history, out / PLOT)


@contextmanager
def _claimed(out: Path, config: RunConfig, processes: Processes, *, resume: bool) -> Iterator[None]:
    """The folder for the first of the processes; where it is refused, all of them raise.

    A folder that is not there is not made for a run to be resumed, which then finds no checkpoint.
    """
    refusal: Exception | None = None
    with ExitStack() as held:
        if processes.rank == 0 and not (resume and not out.is_dir()):
            try:
                held.enter_context(claimed_folder(out))
                if not resume:
                    check_folder(out)  # again: a run may have ended since
            except (OSError, RunFolderError) as error:
                refusal = error
        refused = torch.tensor(float(refusal is not None), device=config.machine.find_device())
        if bool(processes.sum(refused)):
            raise refusal or RunFolderError(f"the first process cannot write to {out}")
        yield


def _read_checkpoint(out: Path) -> Checkpoint:
    path = out / CHECKPOINT
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint at {path} to resume from; leave out --resume to start a run"
        )
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; start the run anew in another folder") from error


def _read_history(path: Path) -> list[EpochMetrics]:
    try:
        return read_metrics(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "a run is resumed with the metrics of its finished epochs, but they cannot be read "
            f"({error}); start the run anew in another folder"
        ) from error
