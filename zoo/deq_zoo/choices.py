"""The solver, the gradient and the optimiser that a config names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from deq_kernels.gradients import (
    Adaptive,
    Gradient,
    Implicit,
    JacobianFree,
    Limited,
    Neumann,
    Shine,
    Unrolled,
)
from deq_kernels.solvers import GMRES, AdjointBroyden, Anderson, Broyden, FixedPoint, Solver
from deq_zoo.config import TrainingConfig
from deq_zoo.equilibrium import EquilibriumConfig

# SHINE, section 3: a sample whose SHINE direction is longer than 1.3 times the incoming gradient
# takes the Jacobian-free direction instead.
SHINE_FALLBACK = 1.3
GRADIENT_STEPS = 5
DAMPING = 0.5
TOLERANCE = 1e-3

SOLVER_TYPES: Mapping[str, type[Solver]] = {
    "broyden": Broyden,
    "anderson": Anderson,
    "fixed_point": FixedPoint,
    "adjoint_broyden": AdjointBroyden,
    "gmres": GMRES,
}

T = TypeVar("T")


def build_solver(config: EquilibriumConfig) -> Solver:
    """The forward solver the config names."""
    return SOLVER_TYPES[config.solver](
        max_steps=config.forward_steps,
        rtol=config.rtol,
        atol=config.atol,
        compact=config.compact,
    )


def build_gradient(config: EquilibriumConfig) -> Gradient:
    """The gradient estimator the config names."""
    steps = _given(config.gradient_steps, GRADIENT_STEPS)
    damping = _given(config.damping, DAMPING)
    backward = config.backward_steps
    builders: Mapping[str, Callable[[], Gradient]] = {
        "implicit": lambda: Implicit(
            solver=SOLVER_TYPES[config.backward_solver](
                max_steps=backward, rtol=config.rtol, atol=config.atol
            )
        ),
        "jfb": JacobianFree,
        "shine": lambda: Shine(fallback=SHINE_FALLBACK),
        "neumann": lambda: Neumann(steps=steps, damping=damping),
        "unrolled": lambda: Unrolled(steps=steps, damping=damping),
        "adaptive": lambda: Adaptive(
            tolerance=_given(config.tolerance, TOLERANCE), max_steps=backward
        ),
        "limited": lambda: Limited(steps=steps),
    }
    return builders[config.gradient]()


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
