"""Names become solvers, gradients, optimisers and models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import deq_kernels as dk
from deq_kernels import (
    GMRES,
    LBFGS,
    Adaptive,
    AdjointBroyden,
    Anderson,
    Broyden,
    FixedPoint,
    Implicit,
    JacobianFree,
    Limited,
    Neumann,
    Shine,
    Unrolled,
)
from deq_zoo.choices import build_gradient, build_optimizer, build_solver
from deq_zoo.config import TrainingConfig
from deq_zoo.equilibrium import BACKWARD_SOLVERS, GRADIENTS, SOLVERS, EquilibriumConfig
from deq_zoo.registry import run_config
from deq_zoo.tasks.mdeq import build_model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gradient": "implicit"}, Implicit(solver=Broyden(max_steps=30, rtol=1e-3))),
        (
            {
                "gradient": "implicit",
                "backward_solver": "gmres",
                "backward_steps": 7,
                "rtol": 0.1,
                "atol": 1e-6,
            },
            Implicit(solver=GMRES(max_steps=7, rtol=0.1, atol=1e-6)),
        ),
        ({"gradient": "jfb"}, JacobianFree()),
        ({"gradient": "shine"}, Shine(fallback=1.3)),
        ({"gradient": "neumann"}, Neumann(steps=5, damping=0.5)),
        (
            {"gradient": "unrolled", "gradient_steps": 2, "damping": 0.8},
            Unrolled(steps=2, damping=0.8),
        ),
        ({"gradient": "adaptive"}, Adaptive(tolerance=1e-3, max_steps=30)),
        ({"gradient": "adaptive", "tolerance": 0.1}, Adaptive(tolerance=0.1, max_steps=30)),
        ({"gradient": "limited", "gradient_steps": 3}, Limited(steps=3)),
    ],
)
def test_gradients(options: dict[str, Any], expected: object) -> None:
    assert build_gradient(EquilibriumConfig(**options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Broyden(max_steps=30, rtol=1e-3)),
        ({"solver": "fixed_point", "forward_steps": 9}, FixedPoint(max_steps=9, rtol=1e-3)),
        ({"solver": "anderson", "atol": 1e-5}, Anderson(max_steps=30, rtol=1e-3, atol=1e-5)),
        ({"compact": True}, Broyden(max_steps=30, rtol=1e-3, compact=True)),
        ({"solver": "adjoint_broyden", "rtol": 0.1}, AdjointBroyden(max_steps=30, rtol=0.1)),
        ({"solver": "lbfgs", "compact": True}, LBFGS(max_steps=30, rtol=1e-3, compact=True)),
    ],
)
def test_solvers(options: dict[str, Any], expected: object) -> None:
    assert build_solver(EquilibriumConfig(**options)) == expected


def test_every_name_of_the_library_is_known() -> None:
    assert tuple(dk.gradients.GRADIENTS) == GRADIENTS
    for name in GRADIENTS:
        gradient = build_gradient(EquilibriumConfig(gradient=name))
        assert type(gradient) is dk.gradients.GRADIENTS[name]
    assert tuple(dk.solvers.SOLVERS) == SOLVERS
    for name in SOLVERS:
        assert type(build_solver(EquilibriumConfig(solver=name))) is dk.solvers.SOLVERS[name]
    for name in BACKWARD_SOLVERS:
        gradient = build_gradient(EquilibriumConfig(backward_solver=name))
        assert isinstance(gradient, Implicit)
        assert type(gradient.solver) is dk.solvers.SOLVERS[name]
    assert set(SOLVERS) - set(BACKWARD_SOLVERS) == {"adjoint_broyden"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_can_train(solver: str) -> None:
    """Whatever it makes of this cell, which is neither affine nor the state less a gradient."""
    settings = {
        "equilibrium.solver": solver,
        "equilibrium.gradient": "jfb",
        "equilibrium.forward_steps": 3,
    }
    config = run_config("mdeq", settings=settings)
    model = build_model(config)
    assert type(model.deq.solver) is dk.solvers.SOLVERS[solver]
    model.deq.on_solve = "ignore"
    model(torch.randn(2, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.deq.parameters())


def test_optimizers() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    adam = build_optimizer(TrainingConfig(learning_rate=0.1, weight_decay=0.2), parameters)
    assert isinstance(adam, torch.optim.Adam)
    sgd = build_optimizer(
        TrainingConfig(optimizer="sgd", learning_rate=0.3, momentum=0.9, nesterov=True), parameters
    )
    assert isinstance(sgd, torch.optim.SGD)
    (first,), (second,) = adam.param_groups, sgd.param_groups
    assert (first["lr"], first["weight_decay"]) == (0.1, 0.2)
    assert (second["lr"], second["momentum"], second["nesterov"]) == (0.3, 0.9, True)


def test_models() -> None:
    settings = {"equilibrium.gradient": "implicit", "equilibrium.forward_steps": 7}
    config = run_config("mdeq", settings={**settings, "equilibrium.warm_start": True})
    model = build_model(config)
    assert model.config.state_dim == 1280
    assert model.deq.gradient == Implicit(solver=Broyden(max_steps=30, rtol=1e-3))
    assert model.deq.solver == Broyden(max_steps=7, rtol=1e-3)
    assert model.deq.warm_start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "exact"}, "gradient must be one of 'implicit', 'jfb'"),
        ({"solver": "newton"}, "solver must be one of 'broyden', 'anderson'"),
        ({"gradient": "jfb", "damping": 0.5}, "damping applies to neumann, unrolled"),
        ({"gradient": "shine", "gradient_steps": 3}, "gradient_steps applies to neumann, unrolled"),
        ({"gradient": "shine", "tolerance": 0.1}, "tolerance applies to adaptive"),
        ({"gradient": "shine", "solver": "fixed_point"}, "choose broyden or adjoint_broyden"),
        ({"gradient": "adaptive", "solver": "anderson"}, "choose broyden or adjoint_broyden"),
        ({"solver": "adjoint_broyden", "compact": True}, "but compact is set; leave it out"),
        ({"forward_steps": 0}, "forward_steps must be a whole number, at least 1; got 0"),
        ({"backward_steps": 1.5}, "backward_steps must be a whole number, at least 1; got 1.5"),
        ({"gradient": "neumann", "gradient_steps": 0}, "gradient_steps must be a whole number"),
        ({"rtol": float("nan")}, "rtol must be finite and at least 0; got nan"),
        ({"gradient": "neumann", "damping": -0.5}, "damping must be .*; got -0.5"),
    ],
)
def test_equilibria_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EquilibriumConfig(**options)


def test_another_gradient_takes_its_own_defaults() -> None:
    config = EquilibriumConfig(gradient="unrolled", gradient_steps=3, damping=0.8, rtol=0.1)
    assert config.with_gradient("shine") == EquilibriumConfig(gradient="shine", rtol=0.1)
    picard = EquilibriumConfig(solver="fixed_point", gradient="jfb")
    assert picard.with_gradient("shine", solver="broyden") == EquilibriumConfig(gradient="shine")
