"""The training loop: unrolled pretraining, then equilibrium training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from deq_zoo.checkpoint import Checkpoint, CheckpointError, check_config
from deq_zoo.choices import build_optimizer
from deq_zoo.clipping import clip_gradients
from deq_zoo.compilation import compile_cell
from deq_zoo.jacobian import JacobianRegularisation, Penalty
from deq_zoo.metrics import EpochMetrics, PartMetrics
from deq_zoo.presets import RunConfig
from deq_zoo.processes import ALONE, GradientAverage, Processes
from deq_zoo.schedule import learning_rate
from deq_zoo.solves import SolveTally
from deq_zoo.tally import Tally
from deq_zoo.task import Task

CHECK_EVERY = 100
"""Steps between two looks at the loss on a GPU, where the host would have to wait for each."""


class Trainer:
    """Trains a task, one epoch per call of `run_epoch`.

    Random numbers come from the trainer's own generator (order of the batches, augmentation, when
    to regularise) and from PyTorch's global ones (dropout masks, probes); `checkpoint` stores them.

    Args:
        task: its model is updated in place.
        config: of the run.
        processes: that train together; each has a trainer, and its own share of the batches.

    Raises:
        ValueError: the config asks for what the model does not have.

    Attributes:
        epoch, step: finished epochs and optimiser steps.
        history: the metrics of the finished epochs.
        solves: how the solves of the model's layer ended.
    """

    def __init__(self, task: Task, config: RunConfig, *, processes: Processes = ALONE) -> None:
        self.task = task
        self.config = config
        self.processes = processes
        self.epoch = 0
        self.step = 0
        self.history: list[EpochMetrics] = []
        self.device = config.machine.find_device()
        self.solves = SolveTally(self.device)
        if task.layer is not None:
            task.layer.on_solve = self.solves
        if config.machine.compile:
            compile_cell(task.layer)
        self.optimizer = build_optimizer(config.training, task.model.parameters())
        self._regularisation = JacobianRegularisation(
            task.layer, config.training, compiled=config.machine.compile
        )
        self._average = GradientAverage(processes, task.model.parameters())
        self._generator = torch.Generator().manual_seed(config.training.seed)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.training.epochs * self.task.steps_per_epoch

    def run_epoch(self, *, on_step: Callable[[], object] | None = None) -> EpochMetrics:
        """Train for one epoch, then validate; the first steps are pretraining.

        Args:
            on_step: called after every step of the optimiser.

        Raises:
            FloatingPointError: the training or the validation loss is not finite.
        """
        started = time.perf_counter()
        train = self._train(on_step)
        validation = self.evaluate("validation")
        check_loss(validation.loss, f"the validation of epoch {self.epoch + 1}")
        self.epoch += 1
        metrics = EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            phase="equilibrium" if self._depth(self.step - 1) is None else "pretrain",
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            train=train,
            validation=validation,
        )
        self.history.append(metrics)
        return metrics

    def evaluate(self, split: str) -> PartMetrics:
        """Averages over "validation" or "test", as the model stands."""
        self.task.model.eval()
        self.task.start_evaluation(split)
        tally, depth = Tally(self.device), self._depth(max(self.step - 1, 0))
        with torch.no_grad():
            for batch in self.task.evaluation_batches(split):
                with self.config.machine.autocast():
                    tally.add(self.task.run(batch, depth=depth))
        return tally.averages(self.task.measure)

    def checkpoint(self) -> Checkpoint:
        """The state from which `restore` continues with the same bits; its tensors are live."""
        rng = {"run": self._generator.get_state(), "global": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return Checkpoint(
            epoch=self.epoch,
            step=self.step,
            config=self._identity(),
            model=self.task.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=rng,
        )

    def restore(self, checkpoint: Checkpoint, *, history: Iterable[EpochMetrics]) -> None:
        """Continue from a checkpoint of a run with the same config.

        Args:
            checkpoint: where to continue.
            history: the metrics of that run, from epoch 1 on. What comes after the checkpoint will
                be run again, and give the same again, and is left out.

        Raises:
            CheckpointError: another config, tensors that do not fit the model, or metrics that are
                not those of the epochs before the checkpoint.
        """
        check_config(checkpoint, self._identity())
        known = list(history)
        epochs = [metrics.epoch for metrics in known]
        if len(epochs) < checkpoint.epoch or epochs != list(range(1, len(epochs) + 1)):
            raise CheckpointError(
                "a run is resumed with the metrics of its finished epochs, which must be 1 to "
                f"{checkpoint.epoch} in order, got {epochs}; start the run anew in another folder"
            )
        self.load_model(checkpoint)
        self._check_optimizer(checkpoint)
        try:
            self.optimizer.load_state_dict(dict(checkpoint.optimizer))
            self._generator.set_state(checkpoint.rng["run"])
            torch.set_rng_state(checkpoint.rng["global"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(checkpoint.rng["cuda"], self.device)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the run: {error}") from error
        self.epoch = checkpoint.epoch
        self.history = known[: self.epoch]

    def load_model(self, checkpoint: Checkpoint) -> None:
        """Take the parameters of a checkpoint, and how far they were trained.

        Raises:
            CheckpointError: they do not fit the model.
        """
        own = self.task.model.state_dict()
        for name, value in checkpoint.model.items():
            if name in own and own[name].dtype != value.dtype:
                raise CheckpointError(
                    f"the checkpoint does not fit the model: {name} must be {own[name].dtype}, got "
                    f"{value.dtype}"
                )
        try:
            self.task.model.load_state_dict(checkpoint.model)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
        self.step = checkpoint.step

    def _check_optimizer(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError unless the optimiser's state is one of this run's parameters.

        The optimiser itself would take anything, and fail at its next step.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        same = json.dumps(_without_rate(groups)) == json.dumps(
            _without_rate(checkpoint.optimizer["param_groups"])
        )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        fits = same and all(
            index < len(parameters)
            and value.shape in (parameters[index].shape, torch.Size())
            and value.is_floating_point()
            for index, values in checkpoint.optimizer["state"].items()
            for value in values.values()
        )
        if not fits:
            raise CheckpointError(
                "the checkpoint does not fit the run: its optimizer has other options, or other "
                "parameters"
            )

    def _identity(self) -> dict[str, object]:
        return {**self.config.to_json(), "processes": self.processes.count}

    def _depth(self, step: int) -> int | None:
        """Applications of the cell in optimiser step `step`; None at the equilibrium."""
        training = self.config.training
        return training.pretraining_depth if step < training.pretraining_steps else None

    def _train(self, on_step: Callable[[], object] | None) -> PartMetrics:
        self.task.model.train()
        self._draw_apart()
        self.task.start_epoch()
        tally = Tally(self.device)
        check_every = 1 if self.device.type == "cpu" else CHECK_EVERY
        for batch in self.task.batches(self._generator):
            self._take_step(batch, tally)
            if self.step % check_every == 0:
                check_loss(tally.loss(), f"epoch {self.epoch + 1}, step {self.step}")
            if on_step is not None:
                on_step()
        self.processes.average_buffers(self.task.model)
        train = tally.averages(self.task.measure, self.processes)
        check_loss(train.loss, f"epoch {self.epoch + 1}")
        return train

    def _draw_apart(self) -> None:
        """Let each of several processes draw masks of its own, the same when it is resumed."""
        rank, count = self.processes.rank, self.processes.count
        if count > 1:
            seed = self.config.training.seed * self.config.training.epochs + self.epoch
            torch.manual_seed(seed * count + rank)

    def _take_step(self, batch: object, tally: Tally) -> None:
        training, task = self.config.training, self.task
        rate = learning_rate(
            training,
            self.step,
            total_steps=self.total_steps,
            steps_per_epoch=task.steps_per_epoch,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        with self._regularisation.one_step(self.step, self.epoch, self._generator) as regulariser:
            items = 0 if batch is None else self._backward(batch, regulariser, tally)
        self._average(items)
        clip_gradients(task.model.parameters(), norm=training.clip_norm, each=training.clip_each)
        self.optimizer.step()
        with torch.no_grad():
            task.after_step()
        self.step += 1

    def _backward(self, batch: object, regulariser: Penalty, tally: Tally) -> int:
        """The gradients of one batch; how many items they are a mean of."""
        with self.config.machine.autocast():
            outcome = self.task.run(batch, depth=self._depth(self.step))
            solution = outcome.solution
            penalty = regulariser.value(None if solution is None else solution.z)
        loss = outcome.loss
        if penalty is not None:
            loss = loss + regulariser.weight * penalty
        loss.backward()
        tally.add(outcome, penalty)
        return outcome.items


def _without_rate(groups: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """Options of an optimiser but for the learning rate, which every step sets."""
    return [{name: value for name, value in group.items() if name != "lr"} for group in groups]


def check_loss(loss: float, where: str) -> None:
    """Make sure that a loss is a number to go on with.

    Raises:
        FloatingPointError: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} in {where}; lower the learning rate, or pretrain for longer"
        )
