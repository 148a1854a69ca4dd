"""The training loop: unrolled pretraining, then equilibrium training."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deq_kernels.data import Digits
from deq_kernels.models.mdeq import MDEQ
from deq_kernels.training.checkpoint import Checkpoint, CheckpointError, check_config
from deq_kernels.training.config import TrainingConfig
from deq_kernels.training.metrics import EpochMetrics, PartMetrics
from deq_kernels.training.schedule import cosine_learning_rate

EVALUATION_BATCH_SIZE = 256


class Trainer:
    """Trains a model on a dataset, one epoch per call of `run_epoch`.

    Random numbers come from the trainer's own generator (order of the batches) and from PyTorch's
    global CPU generator (dropout masks); `checkpoint` stores the states of both.

    Args:
        model: the model, updated in place.
        data: training and validation images.
        config: the options of the run.

    Raises:
        ValueError: there are no training or no validation images.

    Attributes:
        epoch, step: finished epochs and optimiser steps.
        history: the metrics of the finished epochs.
    """

    def __init__(self, model: MDEQ, data: Digits, config: TrainingConfig) -> None:
        for name, split in (("training", data.train), ("validation", data.validation)):
            if len(split) == 0:
                raise ValueError(
                    f"training needs at least one {name} image, got none; hold out another share"
                )
        self.model = model
        self.data = data
        self.config = config
        self.epoch = 0
        self.step = 0
        self.history: list[EpochMetrics] = []
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._order = torch.Generator().manual_seed(config.seed)
        self.steps_per_epoch = -(-len(data.train) // config.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.total_epochs * self.steps_per_epoch

    def run_epoch(self, *, on_step: Callable[[], object] | None = None) -> EpochMetrics:
        """Train for one epoch, then validate; the first epochs are pretraining.

        Args:
            on_step: called after every step of the optimiser.

        Raises:
            FloatingPointError: the training or the validation loss is not finite.
        """
        started = time.perf_counter()
        pretraining = self.epoch < self.config.pretrain_epochs
        depth = self._pretrain_depth() if pretraining else None
        train = self._train(depth, on_step)
        validation = self._validate(depth)
        check_loss(validation.loss, f"the validation of epoch {self.epoch + 1}")
        self.epoch += 1
        metrics = EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            phase="pretrain" if pretraining else "equilibrium",
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - started,
            train=train,
            validation=validation,
        )
        self.history.append(metrics)
        return metrics

    def checkpoint(self) -> Checkpoint:
        """The state from which `restore` continues with the same bits; its tensors are live."""
        return Checkpoint(
            epoch=self.epoch,
            step=self.step,
            config=asdict(self.config),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng={"order": self._order.get_state(), "global": torch.get_rng_state()},
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
        check_config(checkpoint, asdict(self.config))
        known = list(history)
        epochs = [metrics.epoch for metrics in known]
        if len(epochs) < checkpoint.epoch or epochs != list(range(1, len(epochs) + 1)):
            raise CheckpointError(
                "a run is resumed with the metrics of its finished epochs, which must be 1 to "
                f"{checkpoint.epoch} in order, got {epochs}; start the run anew in another folder"
            )
        try:
            self.model.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(dict(checkpoint.optimizer))
            self._order.set_state(checkpoint.rng["order"])
            torch.set_rng_state(checkpoint.rng["global"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
        self.epoch = checkpoint.epoch
        self.step = checkpoint.step
        self.history = known[: self.epoch]

    def _pretrain_depth(self) -> int:
        chosen = self.config.pretrain_steps
        return self.model.config.pretrain_steps if chosen is None else chosen

    def _train(self, depth: int | None, on_step: Callable[[], object] | None) -> PartMetrics:
        self.model.train()
        sums = _Sums()
        for images, labels in self.data.train.batches(
            self.config.batch_size, generator=self._order
        ):
            learning_rate = cosine_learning_rate(
                self.step, total_steps=self.total_steps, initial=self.config.learning_rate
            )
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            scores = self.model(images, pretrain_steps=depth)
            loss = F.cross_entropy(scores, labels)
            check_loss(loss.item(), f"epoch {self.epoch + 1}, step {self.step + 1}")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            sums.add(self.model, scores, labels, solved=depth is None)
            if on_step is not None:
                on_step()
        return sums.averages()

    def _validate(self, depth: int | None) -> PartMetrics:
        self.model.eval()
        sums = _Sums()
        with torch.no_grad():
            for images, labels in self.data.validation.batches(EVALUATION_BATCH_SIZE):
                scores = self.model(images, pretrain_steps=depth)
                sums.add(self.model, scores, labels, solved=depth is None)
        return sums.averages()


def check_loss(loss: float, where: str) -> None:
    """Make sure that a loss is a number to go on with.

    Raises:
        FloatingPointError: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} in {where}; lower the learning rate, or pretrain for longer"
        )


@dataclass
class _Sums:
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    solved: int = 0
    solver_steps: int = 0
    converged: int = 0

    def add(self, model: MDEQ, scores: Tensor, labels: Tensor, *, solved: bool) -> None:
        self.images += len(labels)
        self.loss += F.cross_entropy(scores.detach(), labels, reduction="sum").item()
        self.correct += int((scores.argmax(dim=1) == labels).sum())
        if solved:
            solution = model.last_solution
            assert solution is not None
            self.solved += len(labels)
            self.solver_steps += int(solution.steps.sum())
            self.converged += int(solution.converged.sum())

    def averages(self) -> PartMetrics:
        return PartMetrics(
            loss=self.loss / self.images,
            accuracy=self.correct / self.images,
            solver_steps=self.solver_steps / self.solved if self.solved else None,
            converged=self.converged / self.solved if self.solved else None,
        )
