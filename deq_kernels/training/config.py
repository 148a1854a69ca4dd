"""Everything that decides the outcome of a training run."""

import math
from dataclasses import dataclass

from deq_kernels.training.schedule import FINAL_LEARNING_RATE

DATASETS = ("digits",)
SOLVERS = ("broyden", "fixed_point")
GRADIENTS = ("implicit", "jfb", "shine", "neumann", "unrolled")
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training run; two runs with equal configs give the same bits on one kind of processor.

    Args:
        data: name of the dataset, see `DATASETS`.
        preset: name of the MDEQ architecture, adapted to the image shape of the dataset.
        gradient: name of the gradient estimator, see `GRADIENTS`.
        solver: name of the forward solver, see `SOLVERS`.
        solver_steps: most evaluations of the cell per forward solve; None: the preset's.
        rtol: relative tolerance of the forward solve, and of the implicit backward solve.
        gradient_steps: implicit: most steps of the backward solve (None: the preset's); neumann
            and unrolled: number of terms (None: 5). The others take none.
        damping: of neumann and unrolled (None: 0.5). The others take none.
        pretrain_epochs: epochs of plain backpropagation through the unrolled cell, done first.
        pretrain_steps: applications of the cell in pretraining; None: the preset's.
        epochs: epochs of equilibrium training.
        batch_size: images per step of the optimiser.
        learning_rate: Adam's, at the first step; a cosine lowers it to 1e-6 at the last.
        weight_decay: Adam's.
        seed: of the initial weights, the split, the order of the batches and the dropout masks;
            from 0 to 2^32 - 1.
        threads: used by PyTorch. One is as fast as two on 8x8 images, and does not wait for a core
            that something else occupies.

    Raises:
        ValueError: a number is out of its range, there is no epoch at all, or an option belongs to
            a part of the training that has no epoch.
    """

    data: str = "digits"
    preset: str = "digits"
    gradient: str = "shine"
    solver: str = "broyden"
    solver_steps: int | None = None
    rtol: float = 1e-3
    gradient_steps: int | None = None
    damping: float | None = None
    pretrain_epochs: int = 3
    pretrain_steps: int | None = None
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_whole_number(name, value, least)
        if self.seed > LARGEST_SEED:
            raise ValueError(f"seed must be at most {LARGEST_SEED}, got {self.seed}")
        for name in ("rtol", "learning_rate", "weight_decay", "damping"):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        for name in ("rtol", "damping"):
            value = getattr(self, name)
            if value is not None and value <= 0.0:
                raise ValueError(f"{name} must be above 0, got {value}")
        _check_least("learning_rate", self.learning_rate, FINAL_LEARNING_RATE)
        _check_least("weight_decay", self.weight_decay, 0.0)
        _check_least("total_epochs", self.total_epochs, 1)
        self._check_effect()

    def _check_effect(self) -> None:
        if self.pretrain_epochs == 0 and self.pretrain_steps is not None:
            raise ValueError(
                "pretrain_steps applies to pretraining, but pretrain_epochs is 0; leave it out, or "
                "pretrain"
            )
        for name in ("solver_steps", "gradient_steps", "damping"):
            if self.epochs == 0 and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} applies to equilibrium training, but epochs is 0; leave it out, or "
                    "train at the equilibrium"
                )

    @property
    def total_epochs(self) -> int:
        """Pretraining and equilibrium epochs together."""
        return self.pretrain_epochs + self.epochs


_WHOLE_NUMBERS = {
    "epochs": 0,
    "pretrain_epochs": 0,
    "pretrain_steps": 1,
    "solver_steps": 1,
    "gradient_steps": 1,
    "batch_size": 1,
    "seed": 0,
    "threads": 1,
}
"""The least value of each."""

_OPTIONAL = {"pretrain_steps", "solver_steps", "gradient_steps", "damping"}


def _check_whole_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    _check_least(name, value, least)


def _check_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
