"""torch.compile around models with a layer, and around bare solvers: called as they are."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import deq_kernels as dk

pytestmark = [
    # torch's own compiler reads what torch deprecates, and the gradients of what it resumes with.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


class Model(nn.Module):
    def __init__(self, gradient: dk.Gradient) -> None:
        super().__init__()
        self.before, self.cell, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.layer = dk.DEQ(
            lambda z, x: torch.tanh(0.5 * self.cell(z) + x),
            solver=dk.Broyden(rtol=1e-6),
            gradient=gradient,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.layer(torch.zeros_like(x), x))


class Tanh(nn.Module):
    """tanh(½ linear(z) + x)."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.linear(z) + x)


@pytest.mark.parametrize(
    "gradient", [dk.Implicit(), dk.Shine(), dk.Unrolled()], ids=lambda g: type(g).__name__
)
def test_a_model_breaks_once_at_its_layer(gradient: dk.Gradient) -> None:
    model, counter = Model(gradient), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    x = torch.randn(3, 4)
    for _ in range(4):
        expected = torch.autograd.grad(model(x).square().sum(), tuple(model.parameters()))
        actual = torch.autograd.grad(compiled(x).square().sum(), tuple(model.parameters()))
        for gradient_of, target in zip(actual, expected, strict=True):
            torch.testing.assert_close(gradient_of, target)
    assert counter.frame_count == 2  # what is before the layer, and what is after it
    assert sum(counters["graph_break"].values()) == 1
    assert counters["frames"]["total"] == 2


def test_an_unpickled_layer_is_called_as_it_is_too() -> None:
    layer = pickle.loads(pickle.dumps(dk.DEQ(nn.Linear(4, 4))))
    counter = CompileCounter()
    torch.compile(lambda x: layer(torch.zeros_like(x)).sin(), backend=counter)(torch.ones(2, 4))
    assert counter.frame_count == 2


def test_a_cell_that_is_compiled_itself_stays_compiled_inside() -> None:
    model, counter = Model(dk.JacobianFree()), CompileCounter()
    x = torch.randn(3, 4)
    expected = model(x)
    model.layer.cell = Tanh(model.cell)
    model.layer.cell.compile(backend=counter)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    assert counter.frame_count == 2  # without autograd in the solve, and with it
    compiled(x)
    assert counter.frame_count == 2


def test_a_whole_graph_is_refused_with_the_reason() -> None:
    compiled = torch.compile(Model(dk.Implicit()), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="DEQ takes as many steps"):
        compiled(torch.randn(3, 4))


@pytest.mark.parametrize(
    "solver",
    [dk.Broyden(), dk.Anderson(), dk.FixedPoint(), dk.AdjointBroyden(), dk.GMRES(), dk.LBFGS()],
    ids=lambda s: type(s).__name__,
)
def test_a_bare_solver_is_called_as_it_is(solver: dk.Solver) -> None:
    """The steps are none of the compiled graphs: there are as many for one step as for fifty."""
    counter = CompileCounter()

    def solve(x: Tensor) -> Tensor:
        return solver(lambda z: 0.3 * z + x, torch.zeros_like(x)).z.sin()

    compiled = torch.compile(solve, backend=counter)
    for x in (torch.zeros(3, 4), torch.randn(3, 4), torch.randn(3, 4)):
        torch.testing.assert_close(compiled(x), solve(x))
    assert counters["frames"]["total"] <= 12
