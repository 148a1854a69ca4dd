"""Line searches on functions of one variable, each sample with its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deq_kernels.solvers.machinery.line_search import (
    CURVATURE,
    LINE_SEARCHES,
    MOST_TRIALS,
    SUFFICIENT_DECREASE,
    LineSearch,
)

Function = Callable[[Tensor], Tensor]

# φ with φ′(0) < 0: minimisers far below and far above α = 1, rational, oscillating, nonconvex.
FUNCTIONS: tuple[Function, ...] = (
    lambda a: (a - 1e-4) ** 2,
    lambda a: (a - 900.0) ** 2,
    lambda a: -a / (a * a + 2),
    lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
    lambda a: (a - 2) ** 2 - 1.5 * torch.sin(4 * a),
    lambda a: torch.exp(30 * a) - 60 * a,
    lambda a: torch.where(a < 0.05, -a, torch.nan),
)


def evaluate(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """φ and φ′ of every function at its own α."""
    with torch.enable_grad():
        points = alpha.clone().requires_grad_()
        values = torch.stack([f(points[i]) for i, f in enumerate(FUNCTIONS)])
        (slopes,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), slopes


@pytest.mark.parametrize("kind", LINE_SEARCHES)
@pytest.mark.parametrize("with_values", [True, False])
def test_accepted_steps_meet_the_conditions(kind: str, with_values: bool) -> None:
    number = len(FUNCTIONS)
    start_value, start_slope = evaluate(torch.zeros(number, dtype=torch.float64))
    everyone = torch.ones(number, dtype=torch.bool)
    search = LineSearch(kind, number, torch.device("cpu"))
    search.begin(everyone, start_slope)
    searching = everyone.clone()
    taken = torch.full((number,), torch.nan, dtype=torch.float64)
    for trial in range(1, MOST_TRIALS + 1):
        value, slope = evaluate(search.alpha)
        unknown = torch.full_like(value, torch.nan)
        change = value - start_value if with_values else unknown
        alpha = search.alpha.clone()
        accepted, exhausted = search.judge(searching, value.isfinite(), slope, change)
        assert not exhausted.any()
        if not with_values:
            change = 0.5 * alpha * (start_slope + slope)
        enough = change <= SUFFICIENT_DECREASE * alpha * start_slope
        flat = slope.abs() <= CURVATURE * start_slope.abs()
        assert enough[accepted].all()
        if kind == "strong_wolfe" and trial < MOST_TRIALS:
            assert flat[accepted].all()
        taken = torch.where(accepted, alpha, taken)
        searching &= ~accepted
        assert torch.equal(search.alpha[~searching & ~accepted], taken[~searching & ~accepted])
        if not searching.any():
            break
    assert not searching.any()
    # The last function falls to where it ends: no step is flat, the last that falls is taken.
    assert (trial == MOST_TRIALS) == (kind == "strong_wolfe")
    assert 0.04 < taken[-1] < 0.05 or kind == "armijo"


def test_exact_on_a_quadratic_after_one_refused_step() -> None:
    """Slopes of a quadratic are linear: the first zoom lands on its minimiser."""
    search = LineSearch("strong_wolfe", 1, torch.device("cpu"))
    everyone = torch.ones(1, dtype=torch.bool)
    search.begin(everyone, torch.tensor([-1.0], dtype=torch.float64))
    curvature = 4.0
    slope = -1.0 + curvature * search.alpha
    accepted, _ = search.judge(everyone, everyone, slope, torch.full_like(slope, torch.nan))
    assert not accepted
    torch.testing.assert_close(search.alpha, torch.tensor([0.25], dtype=torch.float64))


def trials(kind: str, *seen: tuple[float, float]) -> tuple[list[float], bool]:
    """The steps tried where φ′(0) = −1 and (φ′(α), φ(α) − φ(0)) are as given, and the verdict."""
    everyone = torch.ones(1, dtype=torch.bool)
    search = LineSearch(kind, 1, torch.device("cpu"))
    search.begin(everyone, torch.tensor([-1.0], dtype=torch.float64))
    tried, accepted = [search.alpha.item()], everyone
    for values in seen:
        slope, change = (torch.tensor([v], dtype=torch.float64) for v in values)
        accepted, _ = search.judge(everyone, everyone, slope, change)
        tried.append(search.alpha.item())
    return tried, bool(accepted)


def test_the_bracket() -> None:
    """Nocedal & Wright's algorithms 3.5 and 3.6, case by case."""
    too_short = (-1.0, -1.0)
    assert trials("strong_wolfe", too_short) == ([1.0, 2.0], False)
    # The slope has turned: the minimiser lies between, halfway by the slopes.
    assert trials("strong_wolfe", too_short, (1.0, -1.5)) == ([1.0, 2.0, 1.5], False)
    # Enough of a decrease, but less than at the step before: it is the far end of the bracket.
    assert trials("strong_wolfe", too_short, (-0.95, -0.5)) == ([1.0, 2.0, 1.9], False)
    assert trials("strong_wolfe", too_short, (0.8, -1.5)) == ([1.0, 2.0, 2.0], True)


@pytest.mark.parametrize("kind", LINE_SEARCHES)
def test_how_much_of_a_decrease_is_enough(kind: str) -> None:
    assert trials(kind, (0.5, -2e-4)) == ([1.0, 1.0], True)
    (_, shorter), accepted = trials(kind, (0.5, -0.5e-4))
    assert not accepted
    assert shorter == (0.5 if kind == "armijo" else 1 / 1.5)


@pytest.mark.parametrize("kind", LINE_SEARCHES)
def test_a_search_without_any_decrease_is_exhausted(kind: str) -> None:
    everyone = torch.ones(1, dtype=torch.bool)
    search = LineSearch(kind, 1, torch.device("cpu"))
    search.begin(everyone, torch.tensor([-1.0], dtype=torch.float64))
    for trial in range(1, MOST_TRIALS + 1):
        nothing = torch.full((1,), torch.nan, dtype=torch.float64)
        accepted, exhausted = search.judge(everyone, ~everyone, nothing, nothing)
        assert not accepted
        assert bool(exhausted) == (trial == MOST_TRIALS)
    assert 0 < search.alpha <= 1e-15
