"""The compiled baseline: its update is plain PyTorch's, and a compiler that fails is named."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.broyden import plain_compiled, plain_pytorch
from benchmarks.broyden.cases import Case
from benchmarks.broyden.problem import make_problem
from benchmarks.broyden.providers import PROVIDERS
from benchmarks.provider import ProviderAbsentError, find_provider

if TYPE_CHECKING:
    from collections.abc import Callable

# The compiler itself takes seconds for each shape, so most tests put a stand-in in its place.
SHAPES = (Case(3, 24, 1), Case(3, 24, 2), Case(2, 40, 9))


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compilers that do nothing, and a list of what was asked of them."""
    asked: list[str] = []

    def compile_nothing(function: Callable[..., Any], *, fullgraph: bool) -> Callable[..., Any]:
        assert fullgraph
        asked.append("compile")
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: asked.append("reset"))
    return asked


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_agrees_with_the_formulation_it_compiles(case: Case, resets: list[str]) -> None:
    solve = plain_compiled.make_solve("cpu")
    problem = make_problem(case, dtype=torch.float64)
    z = solve(problem.f, problem.z0, case.steps)
    assert problem.f.evaluations == case.evaluations
    expected = plain_pytorch.solve_rearranged(problem.f, problem.z0, case.steps)
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-12)


def test_every_shape_is_compiled_for_itself_and_once(resets: list[str]) -> None:
    solve = plain_compiled.make_solve("cpu")
    assert resets == ["compile", "reset"]  # the trial
    for case in (SHAPES[1], SHAPES[1], SHAPES[2]):
        problem = make_problem(case, dtype=torch.float64)
        solve(problem.f, problem.z0, case.steps)
    assert resets == ["compile", *["reset"] * 3]


def test_a_compiler_that_fails_makes_the_provider_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_badly(function: Callable[..., Any], *, fullgraph: bool) -> Callable[..., Any]:
        def fail(*args: Any) -> None:
            raise NameError("name 's20' is\nnot defined\n\nSet TORCH_LOGS for more")

        return fail

    monkeypatch.setattr(torch, "compile", compile_badly)
    with pytest.raises(ProviderAbsentError) as error_info:
        find_provider("plain-compiled", PROVIDERS).load("cpu")
    assert str(error_info.value) == (
        "torch.compile does not work here: NameError: name 's20' is not defined"
    )


@pytest.mark.filterwarnings("default")  # the compiler meets deprecations of its own
def test_one_graph_serves_every_number_of_stored_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the compiler but its code generation, which takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    solve = plain_compiled.make_solve("cpu")
    problem = make_problem(SHAPES[2], dtype=torch.float64)
    # monkeypatch would hide the option from all that is compiled later in this process.
    with torch._dynamo.config.patch(error_on_recompile=True):
        z = solve(problem.f, problem.z0, SHAPES[2].steps)
    expected = plain_pytorch.solve_rearranged(problem.f, problem.z0, SHAPES[2].steps)
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-12)
