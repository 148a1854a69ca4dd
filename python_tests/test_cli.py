"""The command line as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from deq_kernels.program import FAILED, INTERRUPTED, READER_GONE

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, ZOO, BENCHMARKS = "deq_kernels.cli", "deq_zoo.cli", "benchmarks"
ENVIRONMENT = {
    **os.environ,
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "zoo"))),
}
TRAINING = pytest.mark.skipif(
    not all(map(find_spec, ("sklearn", "safetensors", "matplotlib", "tqdm"))),
    reason="training needs the packages of the zoo",
)


@pytest.mark.parametrize(
    "arguments",
    [
        [BENCHMARKS, "--list"],
        [LIBRARY, "info"],
        pytest.param([ZOO, "train", "ignn", "--out", "run"], marks=TRAINING),
    ],
    ids=str,
)
def test_a_reader_that_stops_early_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    """`python -m benchmarks --list | true`: no traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == READER_GONE
    assert errors == ""


def _run(redirected: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT
    )


def test_closed_streams_are_as_good_as_none(tmp_path: Path) -> None:
    """`>&-`: nothing is written to a file that happens to get their number."""
    result = tmp_path / "report.json"
    result.write_text("{}", encoding="utf-8")
    for redirected in (">&-", "<&- >&- 2>&-"):
        assert _run(redirected, LIBRARY, "info", cwd=tmp_path).returncode == 0
        done = _run(redirected, BENCHMARKS, "--render", "report.json", cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert result.read_text(encoding="utf-8") == "{}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    done = _run(">/dev/full", LIBRARY, "info", cwd=tmp_path)
    assert done.returncode == FAILED
    assert done.stderr.startswith("error: the output cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


@TRAINING
def test_an_interrupted_training_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", ZOO, "train", "ignn", "--epochs", "100000", "--out", "run"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == INTERRUPTED
    assert errors == "interrupted\n"
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "run" / ".lock").exists()
