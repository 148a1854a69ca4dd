"""A layer says, raises or hands out what its solves left unconverged."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from python_tests.cells.solves import solve_dense, solve_graph

DOUBLE = torch.float64
GOOD = dk.Broyden(max_steps=200, rtol=1e-8, stall_steps=None)
SHORT = dk.Broyden(max_steps=3, rtol=1e-8)


@contextmanager
def recorded() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield heard


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.9 * torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE)).Q)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight + x)


def problem() -> tuple[Tensor, Tensor]:
    return torch.zeros(4, 6, dtype=DOUBLE), torch.randn(4, 6, dtype=DOUBLE).requires_grad_()


def test_a_forward_solve_is_told_of_once() -> None:
    layer = dk.DEQ(Cell(), solver=SHORT, gradient=dk.JacobianFree())
    z0, x = problem()
    with recorded() as heard:
        layer(z0, x)
        layer(z0, x)
    (warning,) = heard
    assert warning.category is dk.UnconvergedWarning
    text = str(warning.message)
    assert "the forward solve left 4 of 4 samples unconverged: 4 max_steps" in text
    assert f"up to {layer.last_solution.residual.max():.1e} (rtol=1.0e-08, atol=0.0e+00)" in text
    assert 'on_solve="raise"' in text
    assert warning.filename == __file__


def test_statuses_are_counted() -> None:
    slopes = torch.tensor([[0.5], [0.5], [3.0], [1.0], [-1.0]])
    shifts = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0]])
    layer = dk.DEQ(
        lambda z: slopes * z + shifts,
        solver=dk.FixedPoint(max_steps=60, stall_steps=20, divergence_factor=10.0, rtol=1e-3),
    )
    with pytest.warns(dk.UnconvergedWarning, match="3 of 5 .*: 2 stalled, 1 diverged; "):
        layer(torch.zeros(5, 1))


@pytest.mark.parametrize(
    "gradient",
    [dk.Implicit(solver=SHORT), dk.Adaptive(tolerance=1e-8, max_steps=2)],
    ids=lambda gradient: type(gradient).__name__,
)
@pytest.mark.parametrize("on_solve", ["warn", "raise", "ignore"])
def test_an_adjoint_solve(gradient: dk.Gradient, on_solve: Any) -> None:
    # A history of one step makes an inverse that is of little use.
    solver = dk.Broyden(max_steps=200, rtol=1e-8, stall_steps=None, history_length=1)
    layer = dk.DEQ(Cell(), solver=solver, gradient=gradient, on_solve=on_solve)
    for times in range(2):
        loss = layer(*problem()).square().sum()
        if on_solve == "raise":
            with pytest.raises(dk.SolveError, match=r"the adjoint solve, which .* max_steps"):
                loss.backward()
        elif on_solve == "warn" and times == 0:
            with pytest.warns(dk.UnconvergedWarning, match="the adjoint solve, which"):
                loss.backward()
        else:
            loss.backward()


def test_a_second_derivative() -> None:
    seen: list[tuple[str, int]] = []

    def on_solve(solution: dk.Solution, equation: str) -> None:
        seen.append((equation, int(solution.steps.max())))

    layer = dk.DEQ(Cell(), solver=GOOD, gradient=dk.Implicit(solver=GOOD), on_solve=on_solve)
    z0, x = problem()
    (g,) = torch.autograd.grad(layer(z0, x).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert [equation for equation, _ in seen][:3] == ["forward", "adjoint", "tangent"]
    assert all(steps > 1 for _, steps in seen)
    layer.gradient = dk.Implicit(solver=SHORT)
    layer.on_solve = "warn"
    with recorded() as heard:
        (g,) = torch.autograd.grad(layer(z0, x).square().sum(), x, create_graph=True)
        g.square().sum().backward()
    told = [str(warning.message) for warning in heard]
    assert ["the adjoint solve" in told[0], "a second derivative" in told[1]] == [True, True]
    assert len(told) == 2


def test_raise_is_not_once() -> None:
    layer = dk.DEQ(Cell(), solver=SHORT, on_solve="raise")
    for _ in range(2):
        with pytest.raises(dk.SolveError, match="4 max_steps"):
            layer(*problem())
    assert layer.last_solution is not None


def test_all_steps_asked_for_are_no_failure() -> None:
    """Only what diverged is one."""
    every_step = dk.FixedPoint(max_steps=5, rtol=0.0)
    layer = dk.DEQ(Cell(), solver=every_step, gradient=dk.Implicit(solver=every_step))
    layer(*problem()).sum().backward()
    growing = dk.DEQ(lambda z: 1e9 * z + 1.0, solver=every_step)
    with pytest.warns(dk.UnconvergedWarning, match="2 diverged"):
        growing(torch.ones(2, 1))


def test_the_solvers_of_a_gradient_with_fixed_steps_are_not_told_of() -> None:
    for gradient in (dk.Limited(steps=3), dk.Shine(refine=2), dk.Neumann(), dk.Unrolled()):
        dk.DEQ(Cell(), solver=GOOD, gradient=gradient)(*problem()).sum().backward()


def test_bare_solvers_return_statuses_and_say_nothing() -> None:
    cell, (z0, x) = Cell(), problem()
    assert not SHORT(lambda z: cell(z, x), z0).converged.any()


def test_layers_within_layers_tell_for_themselves() -> None:
    inner = dk.DEQ(Cell(), solver=SHORT, gradient=dk.JacobianFree())
    outer = dk.DEQ(lambda z, x: torch.tanh(inner(z, z + x)), solver=SHORT)
    with recorded() as heard:
        outer(*problem())
        outer(*problem())
    assert len([w for w in heard if "the forward solve" in str(w.message)]) == 2


def test_copies_and_pickles() -> None:
    layer = dk.DEQ(Cell(), solver=SHORT, gradient=dk.JacobianFree())
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.on_solve == "warn"
        with pytest.warns(dk.UnconvergedWarning):
            copied(*problem())
    with pytest.warns(dk.UnconvergedWarning):  # the copies have told for themselves
        layer(*problem())
    copy.deepcopy(layer)(*problem())  # of one that has told


def test_threads_tell_the_layer_that_they_use() -> None:
    heard: dict[str, list[str]] = {"one": [], "other": []}

    def run(name: str) -> None:
        def on_solve(_: dk.Solution, equation: str) -> None:
            heard[name].append(equation)

        layer = dk.DEQ(Cell(), solver=GOOD, gradient=dk.Implicit(solver=GOOD), on_solve=on_solve)
        for _ in range(3):
            layer(*problem()).sum().backward()

    threads = [threading.Thread(target=run, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard["one"] == heard["other"] == ["forward", "adjoint"] * 3


@pytest.mark.parametrize(
    "gradient",
    [
        dk.Implicit(),
        dk.Neumann(),
        dk.Adaptive(),
        dk.Limited(),
        dk.Shine(refine=1),
        dk.JacobianFree(refine=1),
    ],
    ids=lambda gradient: type(gradient).__name__,
)
@pytest.mark.parametrize("cut", [Tensor.detach, lambda z: z.detach().requires_grad_()])
def test_a_cell_that_detaches_its_state(gradient: dk.Gradient, cut: Any) -> None:
    weight = (0.5 * torch.eye(6, dtype=DOUBLE)).requires_grad_()
    layer = dk.DEQ(lambda z, x: torch.tanh(cut(z) @ weight + x), solver=GOOD, gradient=gradient)
    with recorded() as heard:
        layer(*problem())
        layer(*problem())
    (warning,) = heard
    assert warning.category is dk.DetachedStateWarning
    assert "no way from f(z) to z" in str(warning.message)


@pytest.mark.parametrize("gradient", [dk.JacobianFree(), dk.Shine()])
def test_gradients_without_products_do_not_mind(gradient: dk.Gradient) -> None:
    weight = (0.5 * torch.eye(6, dtype=DOUBLE)).requires_grad_()
    layer = dk.DEQ(lambda z, x: torch.tanh(z.detach() @ weight + x), solver=GOOD, gradient=gradient)
    layer(*problem())


def structured(name: str, on_solve: Any, *, rtol: float = 1e-12) -> Tensor:
    bias = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    weight = 0.9 * torch.eye(3, dtype=DOUBLE)
    options: dict[str, Any] = {"activation": "identity", "max_steps": 4, "accelerate": False}
    options |= {"on_solve": on_solve, "rtol": rtol}
    if name == "solve_dense":
        return solve_dense(bias, weight, **options)
    chain = Adjacency.from_coo(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), nodes=4)
    return solve_graph(bias, weight, chain.with_values(chain.values.double()), **options)


@pytest.mark.parametrize("name", ["solve_dense", "solve_graph"])
def test_structured_cells(name: str) -> None:
    with pytest.warns(dk.UnconvergedWarning, match="In a DEQ layer: the forward .* max_steps"):
        z = structured(name, "warn")
    with pytest.warns(dk.UnconvergedWarning, match="In a DEQ layer: the adjoint .* max_steps"):
        z.sum().backward()
    with pytest.raises(dk.SolveError, match="In a DEQ layer: the forward"):
        structured(name, "raise")
    structured(name, "ignore").sum().backward()
    seen: list[dk.Solution] = []
    structured(name, seen.append).sum().backward()
    assert len(seen) == 1  # the forward solve


@pytest.mark.parametrize("on_solve", ["warning", None, 3])
def test_other_choices_are_refused(on_solve: Any) -> None:
    for make in (
        lambda: dk.DEQ(Cell(), on_solve=on_solve),
        lambda: structured("solve_dense", on_solve),
    ):
        with pytest.raises(TypeError, match="on_solve must be one of 'warn', 'raise', 'ignore'"):
            make()
