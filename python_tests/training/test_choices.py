"""Names become solvers, gradients and models; an option that has no effect is an error."""

from __future__ import annotations

from typing import Any

import pytest

from deq_kernels import Broyden, FixedPoint, Implicit, JacobianFree, Neumann, Shine, Unrolled
from deq_kernels.training.choices import (
    build_gradient,
    build_model,
    build_solver,
    load_data,
    model_config,
)
from deq_kernels.training.config import GRADIENTS, TrainingConfig


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gradient": "implicit"}, Implicit(solver=Broyden(max_steps=30, rtol=1e-3))),
        (
            {"gradient": "implicit", "gradient_steps": 7, "rtol": 0.1},
            Implicit(solver=Broyden(max_steps=7, rtol=0.1)),
        ),
        ({"gradient": "jfb"}, JacobianFree()),
        ({"gradient": "shine"}, Shine(fallback=1.3)),
        ({"gradient": "neumann"}, Neumann(steps=5, damping=0.5)),
        (
            {"gradient": "unrolled", "gradient_steps": 2, "damping": 0.8},
            Unrolled(steps=2, damping=0.8),
        ),
    ],
)
def test_gradients(options: dict[str, Any], expected: object) -> None:
    assert build_gradient(TrainingConfig(**options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Broyden(max_steps=30, rtol=1e-3)),
        ({"solver": "fixed_point", "solver_steps": 9}, FixedPoint(max_steps=9, rtol=1e-3)),
        ({"preset": "cifar10_tiny"}, Broyden(max_steps=22, rtol=1e-3)),
    ],
)
def test_solvers(options: dict[str, Any], expected: object) -> None:
    assert build_solver(TrainingConfig(**options)) == expected


@pytest.mark.parametrize(
    ("gradient", "kind"),
    list(zip(GRADIENTS, (Implicit, JacobianFree, Shine, Neumann, Unrolled), strict=True)),
)
def test_models(gradient: str, kind: type) -> None:
    config = TrainingConfig(gradient=gradient, solver_steps=7)
    model = build_model(config)
    assert model.config.state_dim == 1280
    assert type(model.deq.gradient) is kind
    assert model.deq.gradient == build_gradient(config)
    assert model.deq.solver == Broyden(max_steps=7, rtol=1e-3)


def test_other_presets_are_adapted_to_the_images() -> None:
    config = model_config(TrainingConfig(preset="cifar10_tiny"))
    assert config.state_dim == 1920
    with pytest.raises(ValueError, match="multiples of 32"):
        model_config(TrainingConfig(preset="imagenet_small"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "exact"}, "no gradient is called 'exact'; there are: implicit, jfb"),
        ({"gradient": "jfb", "damping": 0.5}, "damping applies to neumann and unrolled"),
        ({"gradient": "shine", "gradient_steps": 3}, "shine takes no gradient_steps"),
        ({"gradient": "shine", "solver": "fixed_point"}, "choose broyden, or another gradient"),
    ],
)
def test_gradients_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_gradient(TrainingConfig(**options))


def test_other_unknown_names() -> None:
    with pytest.raises(ValueError, match="no solver is called 'newton'"):
        build_solver(TrainingConfig(solver="newton"))
    with pytest.raises(ValueError, match="no dataset is called 'cifar10'; there are: digits"):
        load_data(TrainingConfig(data="cifar10"))
    with pytest.raises(ValueError, match="no MDEQ preset is called 'huge'"):
        model_config(TrainingConfig(preset="huge"))
