"""What states look like to f and to the caller: named parts, and memory of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import deq_kernels as dk
from deq_kernels.nn import jacobian_penalty, spectral_radius
from deq_kernels.solvers import State

SOLVERS = (
    dk.Broyden(rtol=1e-10),
    dk.Anderson(rtol=1e-10),
    dk.FixedPoint(max_steps=100, rtol=1e-10),
    dk.AdjointBroyden(rtol=1e-10),
    dk.GMRES(rtol=1e-10),
    dk.LBFGS(rtol=1e-10),
)
GRADIENTS = (
    dk.Implicit(),
    dk.JacobianFree(),
    dk.Shine(),
    dk.Limited(),
    dk.Neumann(),
    dk.Adaptive(),
    dk.Unrolled(damping=1.0),
)


class Pair(NamedTuple):
    hidden: Tensor
    memory: Tensor


class Swapped(NamedTuple):
    memory: Tensor
    hidden: Tensor


def zeros() -> Pair:
    return Pair(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64))


def named(state: Pair, x: Tensor) -> Pair:
    """Affine and symmetric, so that every solver solves it."""
    return Pair(0.3 * state.memory + x, 0.3 * state.hidden)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_solvers_keep_the_names(solver: dk.Solver) -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    z = solver(lambda state: named(state, x), zeros()).z
    assert isinstance(z, Pair)
    torch.testing.assert_close(z.hidden, x / 0.91)
    torch.testing.assert_close(z.memory, 0.3 * x / 0.91)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_layers_keep_the_names(gradient: dk.Gradient) -> None:
    layer = dk.DEQ(named, solver=SOLVERS[0], gradient=gradient, warm_start=True)
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    z = layer(zeros(), x)
    assert isinstance(z, Pair)
    assert isinstance(layer.last_solution.z, Pair)
    z.memory.sum().backward()
    plain = dk.DEQ(lambda z, x: tuple(named(Pair(*z), x)), solver=SOLVERS[0], gradient=gradient)
    _, memory = plain(tuple(zeros()), other := x.detach().requires_grad_())
    assert torch.equal(z.memory, memory)
    assert torch.equal(x.grad, torch.autograd.grad(memory.sum(), other)[0])
    layer(zeros(), x)
    assert (layer.last_solution.steps == 1).all()  # it started from the last solution


def test_names_reach_every_callback() -> None:
    seen: list[tuple[State, ...]] = []
    layer = dk.DEQ(named, solver=SOLVERS[0], gradient=dk.Unrolled(steps=2, on_states=seen.append))
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    z = layer(zeros(), x)
    (states,) = seen
    assert all(isinstance(state, Pair) for state in states)

    def outer_gradient(state: Pair) -> Pair:
        return Pair(state.hidden, state.memory)

    aware = dk.AdjointBroyden(rtol=1e-10, opa_every=1, outer_gradient=outer_gradient)
    assert aware(lambda state: named(state, x), zeros()).converged.all()
    point = Pair(*(part.detach() for part in z))
    assert float(jacobian_penalty(lambda state: named(state, x.detach()), point)) > 0
    radius = spectral_radius(lambda state: named(state, x.detach()), point).radius
    torch.testing.assert_close(radius, torch.full_like(radius, 0.3), rtol=1e-3, atol=0)


def test_samples_left_out_keep_the_names_of_inputs_too() -> None:
    def f(state: Pair, given: Pair) -> Pair:
        assert isinstance(given, Pair)
        return Pair(given.hidden * state.memory + 1.0, 0.5 * torch.cos(state.hidden))

    gain = torch.linspace(0.0, 0.9, 9, dtype=torch.float64)[:, None]
    given = Pair(gain, gain)
    start = Pair(torch.zeros_like(gain), torch.zeros_like(gain))
    compact = dk.FixedPoint(max_steps=200, rtol=1e-10, compact=True)
    solution = compact(dk.PerSample(f, given), start)
    assert isinstance(solution.z, Pair)
    assert solution.evaluations < 9 * solution.steps.max()  # samples were left out
    torch.testing.assert_close(f(solution.z, given), solution.z)


@pytest.mark.parametrize(
    ("start", "returned"),
    [(Pair, tuple), (tuple, Pair)],
    ids=["names forgotten", "names added"],
)
def test_names_may_be_left_out(start: type, returned: type) -> None:
    f = lambda state: _made(returned, (0.3 * state[1] + 1.0, 0.3 * state[0]))  # noqa: E731
    solution = SOLVERS[0](f, _made(start, zeros()))
    assert type(solution.z) is start
    torch.testing.assert_close(solution.z[0], torch.full_like(zeros().hidden, 1 / 0.91))


def _made(kind: type, parts: tuple[Tensor, ...]) -> State:
    return tuple(parts) if kind is tuple else kind(*parts)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_other_names_are_refused(solver: dk.Solver) -> None:
    with pytest.raises(TypeError, match=r"a tuple of 2|Pair of 2; got Swapped of 2"):
        solver(lambda state: Swapped(state.memory, state.hidden), zeros())


class OtherTuple(tuple):
    __slots__ = ()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"h": torch.zeros(2, 3)}, "got dict. Use one flat tuple, or a NamedTuple"),
        ([torch.zeros(2, 3)], "got list. Use one flat tuple, or a NamedTuple"),
        (((torch.zeros(2, 3),),), "got tuple. Use one flat tuple, or a NamedTuple"),
        (OtherTuple([torch.zeros(2, 3)]), "got OtherTuple, which is another kind of tuple"),
        ((torch.zeros(2, 3), 1.0), r"got float\.$"),
    ],
    ids=["dict", "list", "nested", "other tuple", "number"],
)
def test_what_is_no_state_is_refused_with_advice(state: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dk.Broyden()(lambda z: z, state)
    with pytest.raises(TypeError, match=message):
        dk.DEQ(lambda z: z)(state)


def half_cosine(z: State, x: Tensor) -> State:
    if isinstance(z, Tensor):
        return torch.tanh(0.3 * z + x.view(z.shape))
    a, b = z
    return torch.tanh(0.3 * b + x), torch.tanh(0.4 * a)


STARTS: dict[str, Callable[[], State]] = {
    "rows": lambda: torch.zeros(3, 4, dtype=torch.float64),
    "images": lambda: torch.zeros(3, 2, 2, dtype=torch.float64),
    "tuple": lambda: (
        torch.zeros(3, 4, dtype=torch.float64),
        torch.zeros(3, 4, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)
def test_outputs_may_be_changed_in_place(gradient: dk.Gradient, start: str) -> None:
    """By whatever autograd has in place, with the same result as out of place."""
    layer = dk.DEQ(half_cosine, solver=SOLVERS[0], gradient=gradient)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    def first(state: State) -> Tensor:
        return state if isinstance(state, Tensor) else state[0]

    z = first(layer(STARTS[start](), x))
    expected = torch.autograd.grad((z + gain).relu().square().sum(), (x, gain))
    z = first(layer(STARTS[start](), x))
    kept = first(layer.last_solution.z).clone()
    z.add_(gain).relu_()
    actual = torch.autograd.grad(z.square().sum(), (x, gain))
    for gradient_of, target in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient_of, target)
    assert torch.equal(first(layer.last_solution.z), kept)


@pytest.mark.parametrize("start", STARTS)
def test_outputs_without_autograd_may_be_changed_under_it(start: str) -> None:
    layer = dk.DEQ(half_cosine, solver=SOLVERS[0])
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        z = layer(STARTS[start](), torch.randn(3, 4, dtype=torch.float64))
    for part in (z,) if isinstance(z, Tensor) else z:
        part.add_(gain).sum().backward()
    assert gain.grad != 0


def test_unrolled_states_may_be_changed_in_place() -> None:
    states: list[tuple[Tensor, Tensor]] = []
    gradient = dk.Unrolled(steps=3, damping=1.0, on_states=states.extend)
    layer = dk.DEQ(half_cosine, solver=SOLVERS[0], gradient=gradient)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    a, _ = layer(STARTS["tuple"](), x)
    expected = torch.autograd.grad(
        a.square().sum() + sum(h[1].relu().square().sum() for h in states), x
    )
    states.clear()
    a, _ = layer(STARTS["tuple"](), x)
    loss = sum(h[1].relu_().square().sum() for h in states)
    actual = torch.autograd.grad(a.square_().sum() + loss, x)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "solver",
    [dk.Broyden(), dk.Broyden(compact=True), dk.AdjointBroyden()],
    ids=["Broyden", "compact", "AdjointBroyden"],
)
@pytest.mark.parametrize("start", STARTS)
def test_states_that_a_cell_changes_are_refused_under_autograd_too(
    start: str, solver: dk.Solver
) -> None:
    """In words of ours, also where what it changes them by has a gradient."""
    gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def change(z: State) -> State:
        (z if isinstance(z, Tensor) else z[1]).mul_(gain)
        return z

    with pytest.raises(RuntimeError, match="f must leave the z it is given as it is"):
        dk.DEQ(change, solver=solver, per_sample=())(STARTS[start]())
