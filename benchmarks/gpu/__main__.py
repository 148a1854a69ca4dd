"""The command: options, and the stages in their order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from .build import build_package, load_package, write_facts
from .checks import SANITIZERS, TESTS_XML, run_sanitizer, run_tests
from .environment import WORK, CannotBeginError, environment, find_capability, find_sanitizer
from .job import ROOT, Stages
from .measurements import MEASUREMENTS, run_suite
from .options import Options, parse_options
from .summary import format_summary, summarize

# Lowers the limit of every stage, for the tests of this command.
_STAGE_SECONDS = "DEQ_KERNELS_STAGE_SECONDS"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; return the exit status."""
    try:
        options = parse_options(argv)
        capability = find_capability(options.python) if options.device == "cuda" else None
        _prepare(options)
    except (CannotBeginError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _run(options, environment(capability))


def _prepare(options: Options) -> None:
    """Make the folders, without what an earlier run left."""
    options.out.mkdir(parents=True, exist_ok=True)
    (WORK / "tmp").mkdir(parents=True, exist_ok=True)
    texts = [f"{name}.txt" for name in ("facts", "build", "tests", "sanitizer")]
    names = (measurement.files for measurement in MEASUREMENTS)
    results = [f"{name}.{ending}" for name in names for ending in ("json", "png", "txt")]
    for name in (*texts, *results, "summary.json"):
        (options.out / name).unlink(missing_ok=True)
    TESTS_XML.unlink(missing_ok=True)


def _run(options: Options, environ: dict[str, str]) -> int:
    stages = Stages(options.seconds, float(os.environ.get(_STAGE_SECONDS, "inf")))
    stages.say(f"deq_kernels on {options.device}; results go to {options.out}")
    facts = partial(write_facts, options)
    stages.run("facts", facts, limit=30, share=100, log=options.out / "facts.txt", environ=environ)
    built = _build(options, stages, environ)
    # What is left of a package whose library does not load still gives data.
    fallback = "reference" if options.device == "cpu" else "triton"
    environ = {**environ, "DEQ_KERNELS_BACKEND": "native" if built else fallback}
    passed = _test(options, stages, environ)
    for tool in SANITIZERS:
        _sanitize(options, stages, environ, tool)
    _measure(options, stages, environ, tests="passed" if built and passed else "failed")
    summary = summarize(options, stages.results, seconds=stages.seconds)
    text = json.dumps(summary, indent=1) + "\n"
    (options.out / "summary.json").write_text(text, encoding="utf-8")
    print(format_summary(summary))
    stages.say(f"done: {options.out / 'summary.json'}")
    return 0 if summary["correct"] else 1


def _build(options: Options, stages: Stages, environ: dict[str, str]) -> bool:
    name, work, limit = "installed", load_package, 60
    if options.build:
        name, work, limit = "build", build_package, 240
    log = options.out / "build.txt"
    built = stages.run(
        name, partial(work, options), limit=limit, share=42, log=log, environ=environ
    )
    if not built:
        _print_lines(_lines(log)[-40:])
    return built


def _test(options: Options, stages: Stages, environ: dict[str, str]) -> bool:
    log, work = options.out / "tests.txt", partial(run_tests, options)
    passed = stages.run("tests", work, limit=270, share=65, log=log, environ=environ)
    lines = _lines(log)
    if not passed:
        _print_lines([x for x in lines if x.startswith(("FAILED", "ERROR", "E  "))][:40])
    _print_lines(lines[-1:])
    return passed


def _sanitize(options: Options, stages: Stages, environ: dict[str, str], tool: str) -> None:
    log = options.out / "sanitizer.txt"
    if options.quick and options.device == "cuda":
        stages.record(tool, "skipped", detail="a quick run leaves it out")
    elif (sanitizer := find_sanitizer()) is None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"compute-sanitizer is not there: {tool} was not run\n")
        stages.record(tool, "skipped", detail="compute-sanitizer is not there")
    else:
        work = partial(run_sanitizer, options, sanitizer=sanitizer, tool=tool)
        stages.run(tool, work, limit=90, share=74, log=log, environ=environ)


def _measure(
    options: Options, stages: Stages, environ: dict[str, str], *, tests: Literal["passed", "failed"]
) -> None:
    for measurement in MEASUREMENTS:
        stages.run(
            measurement.stage,
            partial(run_suite, options, measurement=measurement, tests=tests),
            limit=measurement.limit,
            share=measurement.share,
            log=options.out / f"{measurement.files}.txt",
            environ=environ,
        )
    for path in options.out.glob("*.tmp"):
        path.unlink()
    for measurement in MEASUREMENTS:
        table = options.out / f"{measurement.files}.txt"
        report = table.with_suffix(".json")
        if not _lines(table) and report.exists():  # cut short: what there is so far
            render = [options.run_python, "-m", "benchmarks", "--render", str(report)]
            with table.open("w", encoding="utf-8") as file:
                subprocess.run(render, cwd=ROOT, env=environ, stdout=file, check=False)
        _print_lines(_lines(table))


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
