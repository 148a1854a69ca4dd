"""The peers of other packages: what they need, and what is said where they are absent."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from benchmarks.broyden import memory
from benchmarks.broyden.cases import Case
from benchmarks.broyden.peer_jaxopt import JaxoptSolver
from benchmarks.broyden.problem import make_problem
from benchmarks.broyden.providers import PROVIDERS
from benchmarks.contention import _seconds_of
from benchmarks.provider import ProviderAbsentError, find_provider
from python_tests.benchmarks.broyden.measured import measured

HAS_JAXOPT = all(importlib.util.find_spec(name) for name in ("jax", "jaxopt"))
needs_jaxopt = pytest.mark.skipif(not HAS_JAXOPT, reason="jaxopt is not installed")


@needs_jaxopt
def test_jaxopt_times_and_weighs_itself() -> None:
    solver = JaxoptSolver()
    assert solver.process is None
    case = Case(2, 16, 3)
    problem = make_problem(case, dtype=torch.float64)
    z = solver(problem.f, problem.z0, case.steps)
    assert z.dtype == torch.float64
    assert z.shape == problem.z0.shape
    assert problem.f.evaluations == 4
    assert solver.clock(lambda: None, 2) > 0
    assert solver.process is not None
    assert _seconds_of(solver.process) > 0.1  # JAX has been imported there
    if memory.can_measure_memory():
        assert solver.peak_bytes(problem.f, problem.z0, case.steps) >= 0
    process = solver._process
    assert process is not None
    with pytest.raises(RuntimeError, match="Error"):  # JAX's own, which refuses the provider
        solver(problem.f, problem.z0, -3)
    with pytest.raises(TypeError, match="AffineMap"):
        solver(torch.cos, problem.z0, 3)
    del solver
    assert process.returncode == 0


@pytest.mark.parametrize("missing", ["jax", "jaxopt"])
def test_a_report_says_that_jaxopt_is_absent(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        if name == missing:
            return None
        return object() if name in ("jax", "jaxopt") else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    providers = [find_provider(name, PROVIDERS) for name in ("plain", "jaxopt")]
    report = measured([Case(2, 64, 5)], providers, rounds=1)
    plain, jaxopt = report.cases[0].rows
    assert plain.status == "timed"
    assert jaxopt.status == "absent"
    assert jaxopt.reason == f"{missing} is not installed: pip install jaxopt"


def test_scipy_is_absent_on_batches() -> None:
    pytest.importorskip("scipy")
    providers = [find_provider("scipy", PROVIDERS)]
    cases = [Case(1, 64, 5), Case(3, 64, 5)]
    report = measured(cases, providers, rounds=1, memory="2x64x3")
    alone, batch = (case.rows[0] for case in report.cases)
    assert alone.status == "timed"
    assert batch.status == "absent"
    assert "the case has 3 samples" in (batch.reason or "")
    assert report.memory is not None
    assert "the case has 2 samples" in (report.memory.rows[0].reason or "")


@pytest.mark.parametrize("name", ["jaxopt", "scipy"])
def test_peers_of_the_cpu(name: str) -> None:
    with pytest.raises(ProviderAbsentError, match="CPU only"):
        find_provider(name, PROVIDERS).load("cuda")
