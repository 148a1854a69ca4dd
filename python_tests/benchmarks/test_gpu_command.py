"""`python -m benchmarks.gpu`: refusals, every way a stage can end, and a rehearsal on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.interpreter import make_overlay
from benchmarks.gpu.job import Job, Stages
from benchmarks.gpu.measurements import MEASUREMENTS, command_options, training_cases
from benchmarks.gpu.options import Options
from benchmarks.training.cases import parse_case

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="the stand-ins need bash")

# Stands in for Python: does what STAND_IN says for a stage, and writes what the stage would.
STAND_IN = f"""\
#!{BASH}
name=
case "$*" in
  *" library "*) stage=installed ;;
  *pytest*small_shapes*) stage=tests
    echo '<testsuites><testsuite tests="5" failures="1" errors="0" skipped="2"/></testsuites>' \\
      >"$WORK/tests.xml"
    echo "FAILED test_x" ;;
  *"-m benchmarks "*--render*) echo "rendered"; exit ;;
  *"-m benchmarks "*)
    stage=$3 name=$3
    [ "$3" = broyden ] && stage=benchmark name=bench
    [ "$3" = training ] && stage=train name=train
    echo "$*" >"$WORK/asked-$name"
    cp "$REPORT" "$OUT/$name.json"
    touch "$OUT/$name.json.tmp" ;;
  *) exit 0 ;;
esac
eval "$(grep "^$stage " "$STAND_IN" | cut -d " " -f 2-)"
[ -n "$name" ] && echo "the table of $name"
exit 0
"""
SANITIZER = f"""\
#!{BASH}
eval "$(grep "^$2 " "$STAND_IN" | cut -d " " -f 2-)"
echo "========= ERROR SUMMARY: 0 errors"
"""
BENCHMARKS = ("benchmark", "cells", "train")
# So that it makes no difference whether the machine has the real one.
SILENT_SANITIZER = "\n".join(
    f"{tool} echo 'Device not supported'; exit 1" for tool in ("memcheck", "racecheck", "synccheck")
)


def _run(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the command alone, whose folder build/ is not that of this one."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "benchmarks" / "gpu", copy / "benchmarks" / "gpu")
    shutil.copy(ROOT / "benchmarks" / "__init__.py", copy / "benchmarks")
    return copy


def _stand_in(folder: Path) -> Path:
    """Write the program that stands in for Python."""
    (folder / "programs").mkdir()
    python = folder / "programs" / "python-stand-in"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    return python


def _staged(
    checkout: Path,
    script: str = "",
    *,
    report: dict[str, Any] | None = None,
    sanitizer: str = SILENT_SANITIZER,
    stage_seconds: int = 60,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    """Run the script with the stand-ins; returns what it printed, its summary and OUT.

    Args:
        checkout: see the fixture.
        script: a stage per line, and what it does instead of passing.
        report: the benchmark's JSON.
        sanitizer: like `script`, for compute-sanitizer by tool; it refuses to run if not given.
        stage_seconds: limit of every stage.
    """
    folder = checkout.parent
    python = _stand_in(folder)
    programs = python.parent
    program = programs / "compute-sanitizer"
    program.write_text(SANITIZER, encoding="utf-8")
    program.chmod(0o755)
    stand_in = folder / "stand-in"
    stand_in.write_text(f"{script}\n{sanitizer}\n", encoding="utf-8")
    source = folder / "report.json"
    source.write_text(json.dumps(report or {"cases": []}), encoding="utf-8")
    done = subprocess.run(
        [
            # Without the packages of this interpreter: nothing but Python is needed.
            *(sys.executable, "-S", "-m", "benchmarks.gpu"),
            *("--rehearse", "--no-build", "--python", "programs/python-stand-in", "out"),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(checkout),
            "OUT": str(folder / "out"),
            "WORK": str(checkout / "build" / "gpu"),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "STAND_IN": str(stand_in),
            "REPORT": str(source),
            "DEQ_KERNELS_STAGE_SECONDS": str(stage_seconds),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    out = folder / "out"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return done, summary, out


def _statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in summary["stages"]}


def test_help_names_every_option_stage_and_file(tmp_path: Path) -> None:
    done = _run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("--quick", "--wheels", "--commit", "--python", "--seconds", "--no-build"):
        assert word in done.stdout
    for word in ("--rehearse", "facts", "build", "memcheck", "racecheck", "summary.json"):
        assert word in done.stdout
    for word in ("bench.json", "cells.json", "train.json"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: OUT"),
        (["--fast", "out"], "unrecognized arguments: --fast"),
        (["one", "two"], "unrecognized arguments: two"),
        (["--seconds", "soon", "out"], "--seconds takes a whole number, but got soon"),
        (["--python"], "--python: expected one argument"),
        (["--python", "no-such-python", "out"], "no-such-python is not there"),
        (["--wheels", "nowhere", "out"], "there is no wheel in nowhere"),
        (["--wheels", "x", "--no-build", "out"], "leave out --no-build"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_machine_without_a_gpu_is_refused(tmp_path: Path) -> None:
    done = _run("--python", sys.executable, "out", cwd=tmp_path)
    assert done.returncode == 2
    assert f"torch {torch.__version__} sees no GPU" in done.stderr
    assert "--rehearse walks through the stages on the CPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_all_is_well(checkout: Path) -> None:
    done, summary, out = _staged(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["correct"]
    assert _statuses(summary) == {
        **dict.fromkeys(("facts", "installed", "tests", *BENCHMARKS), "passed"),
        **dict.fromkeys(("memcheck", "racecheck", "synccheck"), "skipped"),
    }
    assert summary["tests"] == {"passed": 2, "failed": 1, "skipped": 2}
    files = {path.name for path in out.iterdir()}
    names = ("facts", "tests", "sanitizer", "build", "bench", "cells", "train")
    jsons = {f"{name}.json" for name in (*names[-3:], "summary")}
    assert files == {f"{name}.txt" for name in names} | jsons
    for name in names[-3:]:
        assert "--tests passed" in (checkout / "build" / "gpu" / f"asked-{name}").read_text()
        assert f"the table of {name}" in done.stdout
    assert "a rehearsal says nothing about a GPU" in done.stdout


def test_a_failed_test_marks_the_benchmark_and_the_exit_status(checkout: Path) -> None:
    done, summary, _ = _staged(checkout, "tests exit 1")
    assert done.returncode == 1
    assert not summary["correct"]
    assert _statuses(summary)["tests"] == "failed"
    assert {_statuses(summary)[name] for name in BENCHMARKS} == {"passed"}
    for name in ("bench", "cells", "train"):
        assert "--tests failed" in (checkout / "build" / "gpu" / f"asked-{name}").read_text()
    assert "FAILED test_x" in done.stdout


def test_a_library_that_does_not_load_leaves_the_rest_to_be_measured(checkout: Path) -> None:
    done, summary, _ = _staged(checkout, "installed echo no library >&2; exit 1")
    assert done.returncode == 1
    assert "no library" in done.stdout
    statuses = _statuses(summary)
    assert (statuses["installed"], statuses["tests"], statuses["benchmark"]) == (
        *("failed", "passed"),
        "passed",
    )
    # Tests of what is left of the package say nothing about what failed.
    assert "--tests failed" in (checkout / "build" / "gpu" / "asked-bench").read_text()


def test_a_stage_that_hangs_is_ended_and_the_next_one_runs(checkout: Path) -> None:
    done, summary, _ = _staged(checkout, "tests sleep 600", stage_seconds=4)
    statuses = _statuses(summary)
    assert done.returncode == 1
    assert (statuses["tests"], statuses["benchmark"]) == ("timed out", "passed")
    assert summary["seconds"] < 300


def test_no_stage_begins_after_the_end(checkout: Path) -> None:
    done, summary, _ = _staged(checkout, stage_seconds=1)
    assert done.returncode == 1
    assert set(_statuses(summary).values()) == {"skipped"}
    assert "tests: skipped (no time left)" in done.stdout


def test_a_benchmark_cut_short_shows_what_it_has(checkout: Path) -> None:
    done, summary, out = _staged(checkout, "benchmark sleep 600", stage_seconds=4)
    assert done.returncode == 0  # nothing speaks against the library
    assert _statuses(summary)["benchmark"] == "timed out"
    assert (out / "bench.txt").read_text() == "rendered\n"
    # The stages after it still have their turn.
    assert (out / "cells.txt").read_text() == "the table of cells\n"
    assert (out / "train.txt").read_text() == "the table of train\n"


def test_a_benchmark_that_breaks_down_is_told_from_one_that_refuses(checkout: Path) -> None:
    """Both end with 1."""
    done, summary, out = _staged(
        checkout, "cells echo broken >&2; exit 1\ntrain echo the table; exit 1"
    )
    assert done.returncode == 0
    statuses = _statuses(summary)
    assert [statuses[name] for name in BENCHMARKS] == ["passed", "failed", "passed"]
    assert "broken" in (out / "cells.txt").read_text()


def test_a_refused_provider_of_ours_is_an_error_and_of_others_is_not(checkout: Path) -> None:
    def report(name: str) -> dict[str, Any]:
        row = {"provider": name, "status": "refused", "reason": "iterates differ"}
        return {"cases": [{"name": "2x3x4", "rows": [row], "steps_recorded": []}]}

    done, summary, out = _staged(
        checkout, "benchmark echo refused; exit 1", report=report("torchdeq")
    )
    assert (done.returncode, summary["correct"]) == (0, True)
    # The stand-in gives every suite the same report.
    assert set(summary["refusals"]) == {"torchdeq on 2x3x4: iterates differ"}
    assert "refused: torchdeq on 2x3x4: iterates differ" in done.stdout
    shutil.rmtree(out.parent / "programs")
    done, summary, _ = _staged(checkout, report=report("ours-bf16"))
    assert (done.returncode, summary["correct"]) == (1, False)


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_measured_on_a_gpu(quick: bool, tmp_path: Path) -> None:
    """As the stages ask for it, which no rehearsal does."""
    options = Options(out=tmp_path, python=sys.executable, commit="abc", quick=quick)
    asked = {
        measurement.files: list(command_options(options, measurement))
        for measurement in MEASUREMENTS
    }
    assert list(asked) == ["bench", "cells", "train"]
    for name, words in asked.items():
        values = {option: words[words.index(option) + 1] for option in ("--device", "--json")}
        assert values == {"--device": "cuda", "--json": str(tmp_path / f"{name}.json")}
        assert words[-2:] == ["--commit", "abc"]
        assert ("--plot" in words) == (find_spec("matplotlib") is not None)
    assert {"--memory", "--regimes"} <= set(asked["bench"])
    assert ("--quick" in asked["bench"], "--quick" in asked["cells"]) == (quick, quick)
    for digits in (False, True):
        cases = [parse_case(text) for text in training_cases(quick=quick, digits=digits)]
        models = (*(("mdeq",) if digits else ()), "transformer", "ignn")
        assert [(case.model, case.gradient) for case in cases[: len(models)]] == [
            (model, "implicit") for model in models
        ]
        assert len(set(cases)) == len(models) * (1 if quick else 3)
    assert "--cases" in asked["train"]


def test_an_environment_on_top_of_this_one_sees_its_packages(tmp_path: Path) -> None:
    make_overlay(str(tmp_path / "venv"))
    command = [str(tmp_path / "venv" / "bin" / "python"), "-c", "import pytest; print(pytest)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert str(Path(pytest.__file__).parent) in done.stdout


def test_what_a_stage_started_ends_with_it(tmp_path: Path) -> None:
    """Also what its program started in turn."""
    assert BASH is not None
    bash, marker = BASH, tmp_path / "marker"
    stages = Stages(100, most=2)

    def work(job: Job) -> None:
        job.run([bash, "-c", f"(sleep 4; touch {marker}) & wait"])

    passed = stages.run(
        "x", work, limit=50, share=100, log=tmp_path / "log", environ=dict(os.environ)
    )
    assert not passed
    (result,) = stages.results
    assert (result.status, result.detail) == ("timed out", "after 2 s")
    time.sleep(4)
    assert not marker.exists()


def test_what_the_sanitizer_found_is_an_error(checkout: Path) -> None:
    found = "========= Invalid __global__ write of size 4 bytes"
    done, summary, out = _staged(
        checkout,
        sanitizer=f"memcheck echo '{found}'; echo '{found}'; echo '=== SUMMARY'; exit 86\n"
        "racecheck true\nsynccheck true",
    )
    assert (done.returncode, summary["correct"]) == (1, False)
    statuses = _statuses(summary)
    tools = ("memcheck", "racecheck", "synccheck")
    assert [statuses[tool] for tool in tools] == ["failed", "passed", "passed"]
    assert summary["sanitizer"] == ["Invalid __global__ write of size 4 bytes"]
    assert "compute-sanitizer: Invalid __global__ write of size 4 bytes" in done.stdout
    assert "memcheck ended with status 86" in (out / "sanitizer.txt").read_text()


def test_a_sanitizer_that_cannot_run_here_says_nothing(checkout: Path) -> None:
    """It refuses the device, or it dies."""
    done, summary, _ = _staged(
        checkout,
        sanitizer="memcheck echo 'Error: Device not supported'; exit 1\n"
        "racecheck kill -9 $$\nsynccheck true",
    )
    assert (done.returncode, summary["correct"]) == (0, True)
    statuses = _statuses(summary)
    tools = ("memcheck", "racecheck", "synccheck")
    assert [statuses[tool] for tool in tools] == ["skipped", "skipped", "passed"]


def test_a_sanitizer_that_found_something_before_it_was_ended_is_believed(checkout: Path) -> None:
    found = "========= Error: Race reported between Write access at fused_kernel"
    done, summary, _ = _staged(
        checkout,
        sanitizer=f"memcheck true\nracecheck echo '{found}'; sleep 600\nsynccheck true",
        stage_seconds=4,
    )
    assert _statuses(summary)["racecheck"] == "timed out"
    assert (done.returncode, summary["correct"]) == (1, False)


def test_a_rehearsal_runs_the_real_stages(tmp_path: Path) -> None:
    """The package as it is installed here, with the smallest selection of everything."""
    done = _run(
        *("--rehearse", "--no-build", "--python", sys.executable, "--commit", "abc", "out"),
        cwd=tmp_path,
        DEQ_KERNELS_BACKEND="auto",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["correct"]
    assert summary["commit"] == "abc"
    assert summary["tests"]["passed"] > 0
    assert summary["tests"]["failed"] == 0
    assert "torch" in (tmp_path / "out" / "facts.txt").read_text(encoding="utf-8")
    tables = {"bench": "2x300x8 float32", "cells": "2x5x8 float32, solve", "train": "ignn/chains"}
    for name, words in tables.items():
        assert words in (tmp_path / "out" / f"{name}.txt").read_text(encoding="utf-8")
        report = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
        assert (report["tests"], report["commit"]) == ("passed", "abc")
