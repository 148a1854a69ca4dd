"""The stages before anything is tested: facts about the machine, and the build."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone

from .environment import ASK, WORK, find_sanitizer
from .job import Job
from .options import Options

_GPU_FACTS = (
    "name,driver_version,compute_cap,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
)


def write_facts(options: Options, job: Job) -> None:
    """Device, driver, toolkit and versions."""
    job.say(datetime.now(timezone.utc).isoformat(timespec="seconds"))
    programs = (os.environ.get("CXX", "g++"), "cmake", "ninja", "git")
    for command in (
        ("nvidia-smi",),
        ("nvidia-smi", f"--query-gpu={_GPU_FACTS}", "--format=csv"),
        ("nvcc", "--version"),
        (find_sanitizer() or "compute-sanitizer", "--version"),
        *((program, "--version") for program in programs),
        ("lscpu",),
        ("free", "-g"),
        (options.python, *ASK, "versions"),
    ):
        _write_output(job, command)


def _write_output(job: Job, command: Sequence[str]) -> None:
    job.say(f"$ {' '.join(command)}")
    if shutil.which(command[0]) is None:
        job.say(f"{command[0]} is not there")
    else:
        job.run(command)
    job.say("")


def build_package(options: Options, job: Job) -> None:
    """Install the checkout editable, in an environment on top of PYTHON's, and load it."""
    job.check([options.python, *ASK, "overlay", WORK / "venv"])
    # Without PYTHONPATH, in which pip would take the checkout for an installed package.
    environ = {name: value for name, value in job.environ.items() if name != "PYTHONPATH"}
    pip = [options.run_python, "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--no-index", "--no-deps", "--no-cache-dir"]
    if options.wheels is not None:
        job.check([*pip, *sorted(options.wheels.glob("*.whl"))], environ=environ)
    job.check([*pip, "--no-build-isolation", "-e", "."], environ=environ)
    load_package(options, job)


def load_package(options: Options, job: Job) -> None:
    """Load the library for the device: the build is good if that succeeds."""
    job.check([options.run_python, *ASK, "library", options.device])
