"""The suite of Anderson solves: its baseline, who is compared, and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.anderson.cases import HISTORY_LENGTH, AndersonCase
from benchmarks.anderson.plain_pytorch import solve_plain
from benchmarks.anderson.providers import PROVIDERS
from benchmarks.anderson.suite import AndersonReport, AndersonSuite
from benchmarks.broyden.checks import check_work, make_anchor
from benchmarks.broyden.problem import make_problem
from benchmarks.broyden.providers import SolveProvider
from benchmarks.provider import ProviderAbsentError, find_provider
from benchmarks.run import Settings, measure
from benchmarks.stored import save_report
from benchmarks.suites import SUITES, load_report

CASE = AndersonCase(3, 300, 10)
ON_CPU = [provider for provider in PROVIDERS if "cpu" in provider.devices]


def _least_squares_anderson(
    f: Callable[[np.ndarray], np.ndarray], z: np.ndarray, steps: int
) -> np.ndarray:
    """One sample, by differences of the residuals and `lstsq`."""
    iterates, images = [z], [f(z)]
    for _ in range(steps):
        residuals = [image - iterate for iterate, image in zip(iterates, images, strict=True)]
        window = residuals[-HISTORY_LENGTH:]
        z = images[-1]
        if len(window) > 1:
            changes = np.stack([old - window[-1] for old in window[:-1]], axis=1)
            weights = np.linalg.lstsq(changes, -window[-1], rcond=None)[0]
            z = z + sum(
                weight * (image - images[-1])
                for weight, image in zip(weights, images[-len(window) : -1], strict=True)
            )
        iterates.append(z)
        images.append(f(z))
    norms = [np.linalg.norm(image - z) for z, image in zip(iterates, images, strict=True)]
    return iterates[int(np.argmin(norms))]


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_plain_agrees_with_least_squares(steps: int) -> None:
    problem = make_problem(AndersonCase(3, 24, steps), dtype=torch.float64)
    z0 = problem.z0.clone()
    z = solve_plain(problem.f, problem.z0, steps)
    assert problem.f.evaluations == steps + 1
    assert torch.equal(problem.z0, z0)
    slopes, offsets = problem.f.slopes.numpy(), problem.f.offsets.numpy()
    for sample in range(3):
        expected = _least_squares_anderson(
            lambda z: slopes * z + offsets, z0[sample].numpy(), steps
        )
        np.testing.assert_allclose(z[sample].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("provider", ON_CPU, ids=lambda provider: provider.name)
def test_everybody_does_the_same_work(provider: SolveProvider, dtype: torch.dtype) -> None:
    try:
        solve = provider.load("cpu")
    except ProviderAbsentError as error:
        pytest.skip(str(error))
    anchor = make_anchor(CASE, dtype=dtype)
    work = check_work(provider, solve, CASE, anchor, dtype=dtype)
    assert work.refusal is None
    assert work.evaluations == CASE.steps + 1
    # The method of the suite, not Broyden's.
    broyden = make_anchor(SUITES["broyden"].find_case(CASE.name), dtype=dtype)  # type: ignore[arg-type]
    assert (anchor.z - broyden.z).norm() > 1e-2 * anchor.z.norm()


def test_the_image_of_an_answer_is_not_taken_for_the_answer() -> None:
    plain = find_provider("plain", PROVIDERS)
    anchor = make_anchor(CASE, dtype=torch.float64)
    claimed = replace(plain, returns_image=True)
    work = check_work(claimed, solve_plain, CASE, anchor, dtype=torch.float64)
    assert work.refusal is not None
    assert "iterates differ" in work.refusal


def test_traffic_by_hand() -> None:
    case = AndersonCase(2, 10, 8)
    changes = 0 + 1 + 2 + 3 + 4 + 5 + 5 + 5
    assert case.floor_bytes(4) == 2 * 10 * 4 * (2 * changes + 7 + 7 * 9)
    assert case.floor_bytes(4, 2) == 2 * 10 * (2 * changes * 2 + (7 + 7 * 9) * 4)
    assert case.working_set_bytes(4) == 2 * 10 * (2 * 5 + 5) * 4


def test_a_run_is_stored_read_and_shown(tmp_path: Path) -> None:
    suite = AndersonSuite()
    providers = [find_provider(name, PROVIDERS) for name in ("reference", "plain")]
    report = measure(suite, [suite.find_case("2x300x8")], providers, Settings(rounds=2))
    assert isinstance(report, AndersonReport)
    path = tmp_path / "report.json"
    save_report(report, path)
    assert load_report(path) == report
    table = suite.shown_as.table(report)
    assert "2k + 9 vectors" in table
    assert [row.status for row in report.cases[0].rows] == ["timed", "timed"]
    assert "2 × 300, 8" in suite.shown_as.markdown(report, "x.json")
    pytest.importorskip("matplotlib")
    suite.shown_as.save_plot(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 0
