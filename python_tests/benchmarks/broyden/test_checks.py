"""Equal work is checked, and what does other work is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from benchmarks.broyden import plain_pytorch
from benchmarks.broyden.cases import Case
from benchmarks.broyden.checks import Work, check_work, make_anchor
from benchmarks.broyden.providers import PROVIDERS, SolveProvider
from benchmarks.provider import ProviderAbsentError, providers_on

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

    from benchmarks.broyden.providers import Map, Solve

CASE = Case(3, 300, 10)


def _why_absent(provider: SolveProvider) -> str | None:
    try:
        provider.load("cpu")
    except ProviderAbsentError as error:
        return str(error)
    return None


def _parameters() -> list[ParameterSet]:
    providers = providers_on("cpu", PROVIDERS)
    absent = {provider.name: _why_absent(provider) for provider in providers}
    return [
        pytest.param(
            provider,
            id=provider.name,
            marks=pytest.mark.skipif(
                absent[provider.name] is not None, reason=absent[provider.name] or "present"
            ),
        )
        for provider in providers
    ]


def _work(solve: Solve, *, history_itemsize: int | None = None) -> Work:
    provider = SolveProvider(
        "candidate", "under test", lambda device: solve, history_itemsize=history_itemsize
    )
    dtype = torch.float64
    return check_work(provider, solve, CASE, make_anchor(CASE, dtype=dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("provider", _parameters())
def test_every_provider_does_the_same_work(provider: SolveProvider, dtype: torch.dtype) -> None:
    case = Case(provider.largest_batch or CASE.batch, CASE.dim, CASE.steps)
    anchor = make_anchor(case, dtype=dtype)
    work = check_work(provider, provider.load("cpu"), case, anchor, dtype=dtype)
    assert work.refusal is None
    assert work.evaluations == CASE.evaluations
    if provider.history_itemsize is None:
        assert work.iterate_difference <= (1e-4 if dtype == torch.float32 else 1e-9)


def test_wrong_iterates_are_refused() -> None:
    work = _work(lambda f, z0, steps: plain_pytorch.solve_rearranged(f, z0, steps) * (1 + 1e-6))
    assert work.refusal is not None
    assert "iterates differ" in work.refusal


def test_one_wrong_sample_is_enough() -> None:
    def solve(f: Map, z0: Tensor, steps: int) -> Tensor:
        z = plain_pytorch.solve_rearranged(f, z0, steps)
        z[1, 0] += 1e-3
        return z

    assert "iterates differ" in (_work(solve).refusal or "")


def test_not_a_number_is_refused() -> None:
    assert _work(
        lambda f, z0, steps: plain_pytorch.solve_rearranged(f, z0, steps) * torch.nan
    ).refusal


def test_fewer_steps_are_refused() -> None:
    work = _work(lambda f, z0, steps: plain_pytorch.solve_rearranged(f, z0, steps - 1))
    assert work.refusal == "evaluated the map 10 times instead of 11"


def test_fixed_point_iteration_is_refused() -> None:
    def solve(f: Map, z0: Tensor, steps: int) -> Tensor:
        z = z0
        for _ in range(steps + 1):
            z = f(z)
        return z.clone()

    assert "iterates differ" in (_work(solve).refusal or "")


def test_rounded_history_is_held_to_its_residual() -> None:
    def nearly(f: Map, z0: Tensor, steps: int) -> Tensor:
        return plain_pytorch.solve_rearranged(f, z0, steps) * (1 + 1e-6)

    def far(f: Map, z0: Tensor, steps: int) -> Tensor:
        return plain_pytorch.solve_rearranged(f, z0, steps) * 1.5

    assert _work(nearly, history_itemsize=2).refusal is None
    assert "times the exact one" in (_work(far, history_itemsize=2).refusal or "")


def test_an_error_is_a_refusal() -> None:
    def solve(f: Map, z0: Tensor, steps: int) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    work = _work(solve)
    assert work.evaluations is None
    assert work.refusal == "failed: RuntimeError: CUDA error: an illegal memory access was " + (
        "encountered"
    )


def test_wrong_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"must return \[3, 300\] but returned \[900\]"):
        _work(lambda f, z0, steps: plain_pytorch.solve_rearranged(f, z0, steps).flatten())


def test_a_case_that_reaches_rounding_is_rejected() -> None:
    with pytest.raises(ValueError, match="take fewer steps"):
        make_anchor(Case(1, 8, 30), dtype=torch.float32)
