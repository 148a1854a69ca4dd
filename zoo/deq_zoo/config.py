"""How a model is trained: optimiser, schedule, pretraining, regularisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from deq_kernels.options import (
    check_choice,
    check_count,
    check_flag,
    check_not_negative,
    check_number,
    check_positive,
)
from deq_zoo.schedule import FINAL_LEARNING_RATE

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["cosine", "step", "constant"]
Jittered = Literal["never", "regularised", "always"]
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the parameters are found; a model's recipes may add options in a subclass.

    Args:
        epochs: passes over the training data, pretraining included.
        batch_size: items per step of the optimiser, over all processes.
        optimizer: adam or sgd.
        learning_rate: the largest of the schedule.
        momentum, nesterov: of sgd.
        weight_decay: L2, of either.
        schedule: per step: "cosine" ends at 1e-6; "step" multiplies by `decay_factor` after each
            epoch in `decay_epochs`; "constant".
        warmup_steps: optimiser steps over which the rate first rises in proportion.
        decay_epochs, decay_factor: of the schedule "step".
        clip_norm: largest L2 norm of all gradients together; None: not clipped.
        clip_each: largest L2 norm of each parameter's gradient; None: not clipped.
        pretraining_steps: optimiser steps of plain backpropagation through the unrolled cell that
            come first; from then on training is at the equilibrium.
        pretraining_depth: applications of the cell in pretraining.
        jacobian_weight: of the penalty ‖∂f/∂z‖_F² / d at the solution (Bai et al. 2021); 0: none.
        jacobian_frequency: probability that a step adds the penalty.
        jacobian_probes: random vectors that estimate it.
        jacobian_growth, jacobian_growth_steps: what is added to the weight every so many optimiser
            steps; 0 steps: nothing.
        jacobian_epochs: epochs after which nothing is penalised any more; None: never.
        pretraining_jacobian_weight: the weight in pretraining.
        step_jitter: smallest and largest of the random whole number that is added to the most
            steps of the forward solve.
        jittered: which training steps jitter.
        seed: of the weights, the split of bundled data, the order of the batches, augmentation,
            dropout and probes; from 0 to 2^32 - 1.

    Raises:
        ValueError: an option is out of its range, or has no effect with the others.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    decay_epochs: tuple[int, ...] = ()
    decay_factor: float = 0.1
    clip_norm: float | None = None
    clip_each: float | None = None
    pretraining_steps: int = 0
    pretraining_depth: int = 10
    jacobian_weight: float = 0.0
    jacobian_frequency: float = 1.0
    jacobian_probes: int = 1
    jacobian_growth: float = 0.0
    jacobian_growth_steps: int = 0
    jacobian_epochs: int | None = None
    pretraining_jacobian_weight: float = 0.0
    step_jitter: tuple[int, int] = (0, 0)
    jittered: Jittered = "never"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "pretraining_depth", "jacobian_probes"):
            check_count(name, getattr(self, name))
        for name in ("pretraining_steps", "warmup_steps", "jacobian_growth_steps", "seed"):
            check_whole(name, getattr(self, name))
        if self.seed > LARGEST_SEED:
            raise ValueError(f"seed must be at most {LARGEST_SEED}; got {self.seed}.")
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("jittered", self.jittered, get_args(Jittered))
        check_flag("nesterov", self.nesterov)
        for name in (
            *("weight_decay", "momentum", "jacobian_weight", "jacobian_growth"),
            "pretraining_jacobian_weight",
        ):
            check_not_negative(name, getattr(self, name))
        check_number(
            "learning_rate",
            self.learning_rate,
            lambda x: FINAL_LEARNING_RATE <= x < math.inf,
            f"finite and at least {FINAL_LEARNING_RATE}",
        )
        check_positive("decay_factor", self.decay_factor)
        for name in ("clip_norm", "clip_each"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), or_else="None")
        check_number(
            "jacobian_frequency", self.jacobian_frequency, lambda x: 0 < x <= 1, "above 0, up to 1"
        )
        if self.jacobian_epochs is not None:
            check_count("jacobian_epochs", self.jacobian_epochs)
        low, high = self.step_jitter
        if low > high:
            raise ValueError(f"step_jitter must be (smallest, largest); got {self.step_jitter}.")
        self._check_effect()

    def _check_effect(self) -> None:
        adam, stepwise = self.optimizer == "adam", self.schedule == "step"
        jittering = self.step_jitter != (0, 0)
        for clash in (
            adam and self.momentum > 0 and "momentum applies to sgd, but the optimizer is adam",
            self.nesterov and not self.momentum and "nesterov needs a momentum above 0",
            bool(self.decay_epochs) != stepwise
            and "decay_epochs and the schedule step go together, but only one of them is set",
            self.pretraining_jacobian_weight
            and not self.pretraining_steps
            and "pretraining_jacobian_weight applies to pretraining, but pretraining_steps is 0",
            bool(self.jacobian_growth) != bool(self.jacobian_growth_steps)
            and "jacobian_growth and jacobian_growth_steps go together, but only one is set",
            self.jacobian_epochs is not None
            and not self.jacobian_weight
            and "jacobian_epochs needs a jacobian_weight above 0",
            self.jittered == "regularised"
            and not self.jacobian_weight
            and "jittered=regularised needs a jacobian_weight above 0",
            jittering != (self.jittered != "never")
            and "step_jitter and jittered go together, but only one of them is set",
        ):
            if clash:
                raise ValueError(f"{clash}; set both, or leave both out")


def check_whole(name: str, value: object) -> None:
    """Raise ValueError unless an option is a whole number, at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a whole number, at least 0; got {value!r}.")
