"""The stages that measure: one per suite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .environment import WORK, has_module
from .job import Job, StageFailedError
from .options import Options


@dataclass(frozen=True)
class Measurement:
    """A suite as it is measured here.

    Attributes:
        stage: name of its stage.
        suite: name of the suite.
        files: name of its files, without their endings.
        limit: seconds that it may take.
        share: percent of all seconds that may be over at its end.
        options: of the command, on a GPU.
        rehearsal: of the command, for the smallest selection on the CPU.
    """

    stage: str
    suite: str
    files: str
    limit: int
    share: int
    options: tuple[str, ...]
    rehearsal: tuple[str, ...]


MEASUREMENTS = (
    Measurement(
        *("benchmark", "broyden", "bench", 300, 88),
        options=("--memory", "--regimes"),
        rehearsal=("--cases", "2x300x8", "--providers", "ours,plain"),
    ),
    Measurement(
        *("cells", "cells", "cells", 90, 94),
        options=(),
        rehearsal=("--cases", "2x5x8", "--providers", "ours,plain-csr"),
    ),
    Measurement(
        *("train", "training", "train", 120, 98),
        options=(),
        rehearsal=("--cases", "ignn/chains/implicit", "--providers", "ours"),
    ),
)


def run_suite(
    options: Options, job: Job, measurement: Measurement, *, tests: Literal["passed", "failed"]
) -> None:
    """Measure a suite: its table goes to the log, its report beside it.

    Raises:
        StageFailedError: it broke down; the log says how.
    """
    progress = WORK / f"{measurement.files}.log"
    command = [options.run_python, "-m", "benchmarks", measurement.suite]
    command += [*command_options(options, measurement), "--tests", tests]
    with progress.open("w", encoding="utf-8") as file:
        status = job.run(command, stderr=file)
    # After a table, 1 means that something was refused: the table says what, the summary judges it.
    if status == 0 or (status == 1 and job.log.tell() > 0):
        return
    job.say("\n".join(progress.read_text(encoding="utf-8").splitlines()[-60:]))
    raise StageFailedError(f"status {status}")


def command_options(options: Options, measurement: Measurement) -> Iterator[str]:
    """Those of `python -m benchmarks SUITE`, but for what the tests said."""
    files = options.out / measurement.files
    yield from ("--json", f"{files}.json")
    if options.device == "cpu":
        yield from ("--rounds", "2", *measurement.rehearsal)
    else:
        yield from ("--device", "cuda", *measurement.options)
        if measurement.suite == "training":
            digits = has_module(options.run_python, "sklearn")
            cases = training_cases(quick=options.quick, digits=digits)
            yield from ("--cases", ",".join(cases), "--rounds", "3" if options.quick else "9")
        elif options.quick:
            yield "--quick"
    if has_module(options.run_python, "matplotlib"):
        yield from ("--plot", f"{files}.png")
    if options.commit is not None:
        yield from ("--commit", options.commit)


def training_cases(*, quick: bool, digits: bool) -> list[str]:
    """One gradient of every model first, in case that time runs out.

    Args:
        quick: with the implicit gradient alone.
        digits: whether scikit-learn, with which they come, is there.
    """
    models = (*(("mdeq/digits",) if digits else ()), "transformer/pydoc", "ignn/chains")
    gradients = ("implicit",) if quick else ("implicit", "unrolled", "jfb")
    return [f"{model}/{gradient}" for gradient in gradients for model in models]
