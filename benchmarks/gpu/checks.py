"""The stages that say something about correctness: tests and compute-sanitizer."""

from __future__ import annotations

import os

from .environment import WORK, has_module
from .job import Job, StageFailedError, StageUnavailableError
from .options import Options

SANITIZERS = ("memcheck", "racecheck", "synccheck")
TESTS_XML = WORK / "tests.xml"
_SMALL_SHAPES = "python_tests/gpu/test_small_shapes.py"
# Warnings of a toolchain that is not the pinned one are shown, but are not errors here.
_PYTEST = ("-m", "pytest", "-q", "--tb=short", "-W", "default", "-p", "no:cacheprovider")
_FINDING_STATUS = 86


def run_tests(options: Options, job: Job) -> None:
    """Every op, dtype and regime against float64; small shapes alone in a quick run."""
    selection = [_SMALL_SHAPES] if options.quick else ["python_tests/gpu", "python_tests/ops"]
    if not options.quick and has_module(options.run_python, "xdist"):
        selection += ["-n", str(min(os.cpu_count() or 1, 8))]
    selection += ["-rs", "--durations=10", f"--junit-xml={TESTS_XML}"]
    job.check([options.run_python, *_PYTEST, *selection])


def run_sanitizer(options: Options, job: Job, *, sanitizer: str, tool: str) -> None:
    """One tool of compute-sanitizer on small shapes.

    Raises:
        StageFailedError: it found something, or a test failed.
        StageUnavailableError: it cannot check this device or driver.
    """
    job.say(f"== compute-sanitizer --tool {tool}")
    # Without torch's caching every tensor is an allocation of its own, with nothing valid behind
    # it. Only kernels are asked about: torch probes the driver with calls that may fail.
    environ = {
        **job.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(_FINDING_STATUS)]
    command += ["--report-api-errors", "no", "--target-processes", "application-only"]
    command += ["--print-limit", "20", options.run_python, *_PYTEST, _SMALL_SHAPES]
    path = WORK / f"{tool}.log"
    try:
        with path.open("w", encoding="utf-8") as file:
            status = job.run(command, environ=environ, stdout=file, stderr=file)
    finally:
        # Also of a tool that ran out of time: what it found until then counts.
        printed = path.read_text(encoding="utf-8", errors="replace")
        job.say(printed)
    job.say(f"== {tool} ended with status {status}")
    if "not supported" in printed or "SUMMARY" not in printed:
        raise StageUnavailableError(
            f"compute-sanitizer cannot check this device or driver: {tool} says nothing"
        )
    if status:
        raise StageFailedError(f"status {status}")
