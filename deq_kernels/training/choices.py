"""Names, as they appear on a command line, to datasets, solvers, gradients and models."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from deq_kernels.data import Digits, digits, load_digits
from deq_kernels.gradients import Gradient, Implicit, JacobianFree, Neumann, Shine, Unrolled
from deq_kernels.models.mdeq import MDEQ, MDEQConfig
from deq_kernels.solvers import Broyden, FixedPoint, Solver
from deq_kernels.training.config import DATASETS, GRADIENTS, SOLVERS, TrainingConfig

# SHINE, section 3: a sample whose SHINE direction is longer than 1.3 times the incoming gradient
# takes the Jacobian-free direction instead.
SHINE_FALLBACK = 1.3
DAMPED_STEPS = 5
DAMPING = 0.5

T = TypeVar("T")


def load_data(config: TrainingConfig) -> Digits:
    """The dataset the config names.

    Raises:
        ValueError: there is no such dataset.
    """
    _one_of("dataset", config.data, DATASETS)
    return load_digits(seed=config.seed)


def model_config(config: TrainingConfig) -> MDEQConfig:
    """The preset the config names, for the image shape and the classes of its dataset."""
    return replace(
        MDEQConfig.preset(config.preset),
        image_channels=digits.IMAGE_CHANNELS,
        image_size=digits.IMAGE_SIZE,
        classes=digits.CLASSES,
    )


def build_model(config: TrainingConfig) -> MDEQ:
    """A newly initialised model with the solver and the gradient the config names."""
    return MDEQ(model_config(config), solver=build_solver(config), gradient=build_gradient(config))


def build_solver(config: TrainingConfig) -> Solver:
    """The forward solver the config names.

    Raises:
        ValueError: there is no such solver.
    """
    _one_of("solver", config.solver, SOLVERS)
    steps = _given(config.solver_steps, MDEQConfig.preset(config.preset).forward_steps)
    if config.solver == "broyden":
        return Broyden(max_steps=steps, rtol=config.rtol)
    return FixedPoint(max_steps=steps, rtol=config.rtol)


def build_gradient(config: TrainingConfig) -> Gradient:
    """The gradient estimator the config names.

    Raises:
        ValueError: there is no such estimator, it does not take an option that is set, or it needs
            another solver.
    """
    name = config.gradient
    _one_of("gradient", name, GRADIENTS)
    if config.damping is not None and name not in ("neumann", "unrolled"):
        raise ValueError(f"damping applies to neumann and unrolled, but the gradient is {name}")
    if config.gradient_steps is not None and name in ("jfb", "shine"):
        raise ValueError(f"the gradient {name} takes no gradient_steps")
    if name == "shine" and config.solver != "broyden":
        raise ValueError(
            "the gradient shine uses the inverse Jacobian that a Broyden solve leaves behind, but "
            f"the solver is {config.solver}; choose broyden, or another gradient"
        )
    damped_steps = _given(config.gradient_steps, DAMPED_STEPS)
    damping = _given(config.damping, DAMPING)
    backward_steps = _given(config.gradient_steps, MDEQConfig.preset(config.preset).backward_steps)
    builders: Mapping[str, Callable[[], Gradient]] = {
        "implicit": lambda: Implicit(solver=Broyden(max_steps=backward_steps, rtol=config.rtol)),
        "jfb": JacobianFree,
        "shine": lambda: Shine(fallback=SHINE_FALLBACK),
        "neumann": lambda: Neumann(steps=damped_steps, damping=damping),
        "unrolled": lambda: Unrolled(steps=damped_steps, damping=damping),
    }
    return builders[name]()


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _one_of(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"no {what} is called {name!r}; there are: {', '.join(known)}")
