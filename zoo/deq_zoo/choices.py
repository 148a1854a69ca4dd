"""The solver, the gradient and the optimiser that a config names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from deq_kernels.gradients import GRADIENTS, Gradient
from deq_kernels.solvers import SOLVERS, Solver
from deq_zoo.config import TrainingConfig
from deq_zoo.equilibrium import EquilibriumConfig

# SHINE, section 3: a sample whose SHINE direction is longer than 1.3 times the incoming gradient
# takes the Jacobian-free direction instead.
SHINE_FALLBACK = 1.3
GRADIENT_STEPS = 5
DAMPING = 0.5
TOLERANCE = 1e-3

T = TypeVar("T")


def build_solver(config: EquilibriumConfig) -> Solver:
    """The forward solver the config names."""
    return SOLVERS[config.solver](
        max_steps=config.forward_steps,
        rtol=config.rtol,
        atol=config.atol,
        compact=config.compact,
    )


def build_gradient(config: EquilibriumConfig) -> Gradient:
    """The gradient estimator the config names; one without options here takes its defaults."""
    steps = _given(config.gradient_steps, GRADIENT_STEPS)
    damping = _given(config.damping, DAMPING)
    backward = config.backward_steps
    options: Mapping[str, Callable[[], dict[str, Any]]] = {
        "implicit": lambda: {
            "solver": SOLVERS[config.backward_solver](
                max_steps=backward, rtol=config.rtol, atol=config.atol
            )
        },
        "shine": lambda: {"fallback": SHINE_FALLBACK},
        "neumann": lambda: {"steps": steps, "damping": damping},
        "unrolled": lambda: {"steps": steps, "damping": damping},
        "adaptive": lambda: {
            "tolerance": _given(config.tolerance, TOLERANCE),
            "max_steps": backward,
        },
        "limited": lambda: {"steps": steps},
    }
    return GRADIENTS[config.gradient](**options.get(config.gradient, dict)())


def build_optimizer(
    config: TrainingConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser the config names."""
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
