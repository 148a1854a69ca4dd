"""Options of a wrong kind and misspelled ones are refused by name; NumPy's numbers are taken."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deq_kernels as dk
from deq_kernels.integrations.torchdeq import set_gradient
from python_tests.cells.solves import solve_dense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "broyden"}, r"solver must be .*Solver; got 'broyden'. Pass dk.Broyden\(\)"),
        ({"solver": dk.Broyden}, r"solver must be .*the class Broyden. Pass an instance, Broyden"),
        ({"eval_solver": "anderson"}, "eval_solver must be .*Solver; got 'anderson'"),
        ({"gradient": "implicit"}, "gradient must be .*Gradient; got 'implicit'. Pass dk.Implicit"),
        (
            {"gradient": dk.Shine},
            r"gradient must be .*the class Shine. Pass an instance, Shine\(\)",
        ),
        ({"gradient": dk.Broyden()}, r"gradient must be a deq_kernels.Gradient; got Broyden\("),
        ({"per_sample": 0}, r"per_sample must be a tuple .*; got 0. Pass \(0,\)"),
        ({"per_sample": "x"}, r"per_sample must be a tuple .*; got 'x'. Pass \('x',\)"),
        ({"per_sample": (0.5,)}, r"per_sample must be a tuple .*; got \(0.5,\)"),
        ({"warm_start": "yes"}, "warm_start must be True or False; got 'yes'"),
        ({"cell": "tanh"}, "cell must be callable.*; got 'tanh'"),
    ],
)
def test_arguments_of_a_layer(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dk.DEQ(**{"cell": nn.Linear(3, 3), **options})


@pytest.mark.parametrize("solver", ["broyden", dk.Broyden, None])
def test_the_solver_of_a_gradient(solver: Any) -> None:
    with pytest.raises(TypeError, match=r"solver must be a deq_kernels.Solver"):
        dk.Implicit(solver=solver)


def test_gradients_elsewhere() -> None:
    u, weight = torch.ones(2, 3), 0.5 * torch.eye(3)
    with pytest.raises(TypeError, match=r"gradient must be .*the class Implicit. Pass an instance"):
        solve_dense(u, weight, activation="tanh", gradient=dk.Implicit)
    layer = nn.Module()
    layer.produce_grad, layer.f_solver = [None], lambda: None
    with pytest.raises(TypeError, match=r"gradient must be .*; got 'shine'. Pass dk.Shine"):
        set_gradient(layer, "shine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dk.Broyden(max_step=3), "Broyden got .* 'max_step'. Did you mean 'max_steps'"),
        (lambda: dk.Anderson(qqq=3), "Anderson got .* 'qqq'. It has atol, .*, synchronized.$"),
        (lambda: dk.Implicit(sover=3), "Implicit got .* 'sover'. Did you mean 'solver'"),
        (lambda: dk.Shine(falback=3), "Shine got .* 'falback'. Did you mean 'fallback'"),
        (
            lambda: dk.root(np.cos, 1.0, options={"maxitr": 3}),
            "root got .* 'maxitr'. Did you mean 'maxiter'",
        ),
    ],
)
def test_misspelled_options(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_a_class_of_a_users_own_has_its_own_arguments() -> None:
    class Mine(dk.Broyden):
        def __init__(self, length: int) -> None:
            super().__init__(max_steps=length)

    class Free(dk.Broyden):
        def __init__(self, **options: Any) -> None:
            super().__init__(max_steps=options["length"])

    assert Mine(length=7).max_steps == Free(length=7).max_steps == 7


def test_numbers_of_numpy_are_numbers() -> None:
    solver = dk.Broyden(
        max_steps=np.int64(10),
        rtol=np.float32(0.125),
        stall_steps=np.int8(5),
        damping=np.float16(1),
    )
    assert solver == dk.Broyden(max_steps=10, rtol=0.125, stall_steps=5, damping=1.0)
    assert type(solver.rtol) is float
    assert type(dk.FixedPoint(compact=np.bool_(True)).compact) is bool
    assert dk.Unrolled(steps=np.int32(2), damping=np.float32(0.5)) == dk.Unrolled(steps=2)
    assert dk.Adaptive(tolerance=np.float32(0.25)) == dk.Adaptive(tolerance=0.25)
    assert dk.Shine(refine=np.int64(1)) == dk.Shine(refine=1)
    for copied in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert copied == solver
    assert solver(lambda z: 0.5 * z, torch.ones(2, 3)).steps.tolist() == [3, 3]
    result = dk.root(
        lambda x: 1.0 - x, np.zeros(2), tol=np.float32(1e-4), options={"maxiter": np.int64(9)}
    )
    assert result.success
    u = torch.ones(2, 3)
    z = solve_dense(u, 0.5 * torch.eye(3), activation="tanh", max_steps=np.int64(90))
    assert z.isfinite().all()


@pytest.mark.parametrize("value", [np.float32(-1.0), np.float64("nan"), np.bool_(True)])
def test_and_have_the_same_range(value: Any) -> None:
    with pytest.raises(ValueError, match="rtol must be"):
        dk.Broyden(rtol=value)
