"""What records a solve, or has tensors without values: refused in words of ours, or right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import deq_kernels as dk
from deq_kernels.cells import Adjacency
from deq_kernels.integrations import torchdeq as drop_in
from deq_kernels.solvers.machinery.stepwise import StepwiseSolve
from python_tests.cells.solves import solve_dense, solve_graph

pytestmark = [
    # torch deprecates what is refused here.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

SOLVERS = tuple(solver() for solver in dk.solvers.SOLVERS.values())


def weight(x: Tensor) -> Tensor:
    return 0.3 * torch.eye(4, dtype=x.dtype, device=x.device)


class Layer(nn.Module):
    def __init__(self, solver: dk.Solver, gradient: dk.Gradient | None = None) -> None:
        super().__init__()
        self.layer = dk.DEQ(
            lambda z, x: torch.tanh(z @ weight(x) + x), solver=solver, gradient=gradient
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.zeros_like(x), x)


def bare(solver: dk.Solver) -> Callable[[Tensor], Tensor]:
    return lambda x: solver(lambda z: torch.tanh(z @ weight(x) + x), torch.zeros_like(x)).z


SOLVES: dict[str, Callable[[Tensor], Any]] = {
    **{f"{type(solver).__name__} in a layer": Layer(solver) for solver in SOLVERS},
    **{type(solver).__name__: bare(solver) for solver in SOLVERS},
    "unrolled": Layer(dk.Broyden(), dk.Unrolled()),
    "step by step": lambda x: (
        StepwiseSolve(dk.Broyden(), torch.tanh, x, keep_inverse=False).advance().f_z
    ),
    "drop-in": lambda x: drop_in.anderson(lambda z: torch.tanh(0.5 * z + x), torch.zeros_like(x)),
}


def fake(solve: Callable[[Tensor], Any], x: Tensor) -> object:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return solve(torch.zeros(2, 4))


def fake_tensor(solve: Callable[[Tensor], Any], x: Tensor) -> object:
    return solve(FakeTensorMode().from_tensor(x))


class Module(nn.Module):
    def __init__(self, solve: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.solve = solve

    def forward(self, x: Tensor) -> Any:
        return self.solve(x)


RECORDINGS: dict[str, tuple[Callable[..., object], str]] = {
    "trace": (lambda f, x: torch.jit.trace(f, (x,), check_trace=False), r"torch\.jit\.trace"),
    "meta": (lambda f, x: f(x.to("meta")), "on the device meta"),
    "FakeTensorMode": (fake, "FakeTensorMode"),
    "a fake tensor": (fake_tensor, "FakeTensorMode"),
    "make_fx": (lambda f, x: make_fx(f)(x), "make_fx"),
    "make_fx with fakes": (lambda f, x: make_fx(f, tracing_mode="fake")(x), "make_fx"),
    "export": (lambda f, x: torch.export.export(Module(f), (x,)), r"torch\.export"),
}


@pytest.mark.parametrize("way", RECORDINGS)
@pytest.mark.parametrize("solve", SOLVES)
def test_recordings_of_a_solve_are_refused(solve: str, way: str) -> None:
    record, named = RECORDINGS[way]
    if (solve, way) == ("drop-in", "a fake tensor"):
        pytest.skip("its parts are made of zeros_like(x), which is no fake outside of the mode")
    with pytest.raises(NotImplementedError, match=rf"A solve takes as many steps.*{named}"):
        record(SOLVES[solve], torch.zeros(2, 4))


def test_other_modes_do_not_mind() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(2, 4)
    expected = SOLVES["Broyden"](x)
    with FlopCounterMode(display=False) as counter:
        assert torch.equal(SOLVES["Broyden"](x), expected)
    assert counter.get_total_flops() > 0
    assert torch.equal(dk.Broyden()(lambda z: 0.5 * z, nn.Parameter(x)).z, 0 * x)


def test_scripts_are_refused() -> None:
    for model in (dk.DEQ(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), Layer(dk.Broyden()))):
        with pytest.raises(NotImplementedError, match=r"DEQ cannot be compiled by torch\.jit"):
            torch.jit.script(model)


def test_a_scripted_cell_is_fine() -> None:
    cell = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    layer = dk.DEQ(cell)
    layer(torch.zeros(2, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())


def dense(x: Tensor) -> Tensor:
    return solve_dense(x, weight(x), activation="tanh")


ADJACENCY = Adjacency.from_coo(torch.tensor([[0, 1], [1, 0]]), nodes=2)


def graph(x: Tensor) -> Tensor:
    return solve_graph(x, weight(x), ADJACENCY, activation="tanh")


@pytest.mark.parametrize("solve", [dense, graph], ids=["dense", "graph"])
def test_structured_cells_are_one_op_that_can_be_recorded(
    solve: Callable[[Tensor], Tensor],
) -> None:
    x = torch.randn(2, 4)
    recorded = make_fx(solve)(torch.zeros(2, 4))
    torch.testing.assert_close(recorded(x), solve(x))
    exported = torch.export.export(Module(solve), (torch.zeros(2, 4),)).module()
    torch.testing.assert_close(exported(x), solve(x))


@pytest.mark.parametrize("solve", [dense, graph], ids=["dense", "graph"])
def test_structured_cells_refuse_traces(solve: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace"):
        torch.jit.trace(solve, (torch.zeros(2, 4),), check_trace=False)


def test_a_structured_cell_without_values_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="on the device meta"):
        dense(torch.zeros(2, 4, device="meta"))


def test_importing_the_package_does_not_import_the_compiler() -> None:
    """It takes as long as importing torch."""
    program = "import deq_kernels, sys; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
