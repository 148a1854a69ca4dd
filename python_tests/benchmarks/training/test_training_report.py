"""A small run of training steps: rows, JSON, table, Markdown, chart."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.device import find_device
from benchmarks.provider import OURS, Provider, ProviderAbsentError
from benchmarks.run import Settings, measure
from benchmarks.stored import save_report
from benchmarks.suites import SUITES, load_report
from benchmarks.training import problem as problems
from benchmarks.training import providers
from benchmarks.training.cases import CASES, StepCase, parse_case
from benchmarks.training.problem import StepProblem
from benchmarks.training.providers import Bind, Step
from benchmarks.training.suite import TrainingStepSuite
from benchmarks.training.training_report import StepReport
from benchmarks.training.training_text import format_markdown, format_table
from deq_zoo.data import Splits
from python_tests.zoo.training.runs import images

pytestmark = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="the digits need scikit-learn to be asked for"
)


class Opposite(Step):
    """Gradients of the wrong sign."""

    def gradient(self) -> Any:
        return -super().gradient()


def _opposite(problem: StepProblem) -> Step:
    return Opposite(problem.copy(), problem)


def _broken(problem: StepProblem) -> Step:
    raise RuntimeError("no step\nof this")


def _load_absent(device: str) -> Bind:
    raise ProviderAbsentError("not installed: pip install nothing")


PROVIDERS: tuple[Provider[Bind], ...] = (
    *(provider for provider in providers.PROVIDERS if provider.name != "torchdeq"),
    Provider("wrong", "another gradient", lambda device: _opposite),
    Provider("broken", "raises", lambda device: _broken),
    Provider("missing", "is not there", _load_absent),
)


def _images(*, seed: int) -> Splits:
    return images()


SETTINGS = Settings(
    device=find_device("cpu"),
    dtype="float32",
    rounds=2,
    threads=1,
    commit=None,
    tests=None,
    save=None,
    say=lambda line: None,
)


@pytest.fixture(scope="module")
def report() -> StepReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deq_zoo.data.digits.load_digits", _images)
        patch.setattr(problems, "UNROLLED_STEPS", 1)
        patch.setattr(problems, "EQUILIBRIUM_STEPS", 1)
        return measure(
            TrainingStepSuite(), [StepCase("mdeq", "digits", "jfb", "fixed")], PROVIDERS, SETTINGS
        )


def test_rows(report: StepReport) -> None:
    (case,) = report.cases
    rows = {row.provider: row for row in case.rows}
    assert case.name == "mdeq/digits/jfb/fixed"
    assert case.parameters == 54_362
    assert {name: row.status for name, row in rows.items()} == {
        OURS: "timed",
        "ours-compact": "timed",
        "ours-warm": "timed",
        "ours-warm-compact": "timed",
        "wrong": "refused",
        "broken": "refused",
        "missing": "absent",
    }
    ours = rows[OURS]
    assert ours.steps == 30, "fixed solves take all their steps"
    assert ours.cosine == pytest.approx(1.0)
    assert ours.step_over_ours is not None
    assert ours.step_over_ours.samples == (1.0, 1.0)
    assert ours.forward_ms is not None
    assert ours.backward_ms is not None
    assert ours.forward_ms.median > 0
    assert ours.backward_ms.median > 0
    assert rows["wrong"].cosine == pytest.approx(-1.0)
    assert len(report.refusals) == 2
    assert "cosine -1.000 with that of ours" in report.refusals[0]
    assert report.refusals[1].endswith("failed: RuntimeError: no step")


def test_a_model_on_the_structured_cell() -> None:
    """torchdeq drives the same cell in PyTorch, and finds the same gradient."""
    pytest.importorskip("torchdeq")
    report = measure(
        TrainingStepSuite(), [StepCase("ignn", "chains", "implicit")], providers.PROVIDERS, SETTINGS
    )
    (case,) = report.cases
    status = {row.provider: (row.status, row.reason) for row in case.rows}
    assert status.pop("ours-compact")[0] == "absent"
    assert status.pop("ours-warm-compact")[0] == "absent"
    assert set(status.values()) == {("timed", None)}


def test_the_report_survives_json(report: StepReport, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save_report(report, path)
    assert load_report(path) == report
    data = path.read_text().replace('"schema": 1', '"schema": 9')
    path.write_text(data)
    with pytest.raises(ValueError, match=r"the suite training has schema 1, but .* has 9"):
        load_report(path)


def test_texts(report: StepReport, tmp_path: Path) -> None:
    table = format_table(report)
    assert "mdeq/digits/jfb/fixed float32, 54,362 parameters" in table
    assert "missing: absent: not installed" in table
    assert "refused, and therefore not timed" in table
    markdown = format_markdown(report, "results/train.json")
    assert "| mdeq/digits/jfb/fixed | " in markdown
    assert "×) | refused | refused | absent |" in markdown
    if find_spec("matplotlib") is not None:
        SUITES["training"].shown_as.save_plot(report, tmp_path / "train.png")
        assert (tmp_path / "train.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_cases() -> None:
    suite = SUITES["training"]
    for case in CASES:
        assert parse_case(case.name) == case
        assert suite.find_case(case.name) == case
    assert set(suite.cases("cpu", quick=True)) <= set(CASES)
    for text in ("mdeq/digits", "vgg/digits/shine", "mdeq/digits/exact", "mdeq/digits/jfb/loose"):
        with pytest.raises(ValueError, match="a case is MODEL/PRESET/GRADIENT"):
            parse_case(text)
