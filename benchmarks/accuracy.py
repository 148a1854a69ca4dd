"""Train a preset with several gradients and seeds; keep what each says of the test data."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.device import find_device
from benchmarks.machine import commit as commit_of_checkout
from benchmarks.machine import is_clean
from benchmarks.stored import save_report
from benchmarks.text import align
from deq_kernels.program import fail
from deq_zoo.commands.numbers import non_negative_int
from deq_zoo.evaluate import evaluate_checkpoint
from deq_zoo.folder import CHECKPOINT
from deq_zoo.json_text import read_json
from deq_zoo.loop import Trainer
from deq_zoo.presets import RunConfig
from deq_zoo.registry import find_task, run_config
from deq_zoo.run import run_training
from deq_zoo.settings import parse_settings
from deq_zoo.threads import use_threads
from deq_zoo.typed import read_dataclass

SCHEMA = 2
"""The first one held other names, and was written by hand."""
GRADIENT, SEED = "equilibrium.gradient", "training.seed"
SEEDS = (0, 1, 2, 3, 4)

EPILOG = """\
Every run is what `deq-zoo train MODEL --preset PRESET --gradient NAME --seed N` does, and
`deq-zoo evaluate` after it, in a temporary folder. The file is written anew after every run.
It holds commit (`-dirty` where tracked files differ from it), commands, machine, versions, every
setting that the runs begin with, and for each run gradient, settings, seed, the scores on the
test and the validation data (accuracy, or what the model is judged by), the mean loss and the mean
solver steps on the test data, and the seconds that its epochs took. A run that was stopped is
made anew. One process at a time may write to a file.

examples:
  python -m benchmarks.accuracy mdeq/digits --gradient implicit --gradient shine --out digits.json
  python -m benchmarks.accuracy ignn/chains --gradient implicit \\
      --gradient unrolled equilibrium.damping=0.8 --gradient unrolled equilibrium.damping=1 \\
      --seeds 0 1 2 --out chains.json
  python -m benchmarks.accuracy mdeq/digits --set training.epochs=3 --seeds 0 --out short.json

`deq-zoo train MODEL --help` lists presets, gradients and settings.
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model.

    Attributes:
        gradient: the estimator.
        settings: given for this gradient, by dotted name.
        seed: of the run.
        test_score, validation_score: see `Report.score`.
        test_loss: mean loss of the test items.
        solver_steps: mean evaluations of the cell per sample, test data; None if nothing is solved.
        training_seconds: of all epochs, each with its validation.
    """

    gradient: str
    settings: dict[str, Any]
    seed: int
    test_score: float
    validation_score: float
    test_loss: float
    solver_steps: float | None
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is written.

    Attributes:
        schema: version of the format.
        date: when the first run began, UTC, ISO 8601.
        commit: of the checkout, with `-dirty` where tracked files differ from it; None if unknown.
        commands: that the runs are from.
        machine: the device as plain values.
        versions: of everything measured; None for what is not installed.
        score: the name of what the model is judged by.
        config: every setting that the runs begin with.
        runs: one after the other.
    """

    schema: int
    date: str
    commit: str | None
    commands: tuple[str, ...]
    machine: dict[str, Any]
    versions: dict[str, Any]
    score: str
    config: dict[str, Any]
    runs: tuple[Run, ...]


SAME = ("schema", "commit", "machine", "versions", "score", "config")
"""What must be the same for runs to be in one file."""

Variant = tuple[str, dict[str, Any]]
"""A gradient and its settings."""


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Train a preset of a model with several gradients and seeds, evaluate each run "
        "on the test data, and write the accuracies to a JSON file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", metavar="MODEL/PRESET", help="such as mdeq/digits")
    parser.add_argument(
        "--gradient",
        action="append",
        nargs="+",
        metavar=("NAME", "SETTING=VALUE"),
        help="a gradient estimator and settings that go with it; may be given several times "
        "(default: the preset's)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=non_negative_int,
        default=SEEDS,
        metavar="N",
        help=f"one run each (default: {' '.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="change one setting of all runs; may be given several times",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of a dataset that is read from disk"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the JSON file; where it holds runs of the same clean commit, machine and settings, "
        "those are kept and not run again",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew where --out holds other runs"
    )
    return parser


def plan(args: argparse.Namespace) -> tuple[RunConfig, list[Variant]]:
    """What all runs begin with, and the gradients; every run's settings have been checked.

    Raises:
        ValueError: a name or a value is refused, or something is asked for twice.
    """
    model, sign, preset = args.problem.partition("/")
    if not sign:
        raise ValueError(f"a problem is MODEL/PRESET, such as mdeq/digits; got {args.problem!r}.")
    shared = parse_settings(args.settings)
    for name, option in ((GRADIENT, "--gradient"), (SEED, "--seeds")):
        if name in shared:
            raise ValueError(f"{name} is what {option} is for; leave it out of --set.")
    config = run_config(model, preset=preset, settings=shared)
    variants: list[Variant] = []
    for name, *texts in args.gradient or [[config.equilibrium.gradient]]:
        own = parse_settings(texts)
        if twice := sorted(set(own) & {GRADIENT, SEED, *shared}):
            raise ValueError(f"{', '.join(twice)} is given for {name} and elsewhere; give it once.")
        settings = {**shared, GRADIENT: name, **own}
        values = run_config(model, preset=preset, settings=settings).to_json()
        variants.append((name, {setting: values[setting] for setting in own}))
    for what, given in (("gradient", variants), ("seed", args.seeds)):
        if repeated := [one for number, one in enumerate(given) if one in given[:number]]:
            raise ValueError(f"the {what} {repeated[0]} comes twice; give it once.")
    for seed in args.seeds:
        with_variant(config, variants[0], seed, shared)
    return config, variants


def with_variant(
    config: RunConfig, variant: Variant, seed: int, shared: Mapping[str, Any]
) -> RunConfig:
    """The config of one run.

    Raises:
        ValueError: a value is refused.
    """
    gradient, own = variant
    settings = {**shared, GRADIENT: gradient, **own, SEED: seed}
    return run_config(config.task, preset=config.preset, settings=settings)


def begin(config: RunConfig, out: Path, command: str) -> Report:
    """A report without runs."""
    device = find_device(torch.device(config.machine.device).type)
    with use_threads(config.machine.threads):
        return Report(
            schema=SCHEMA,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            commit=commit_of_checkout(besides=out),
            commands=(command,),
            machine=device.describe(),
            versions=device.versions(),
            score=find_task(config.task).measure.name,
            config=config.to_json(),
            runs=(),
        )


def load(path: Path) -> Report:
    """Read a report.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what this version writes.
    """
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") != SCHEMA:
        raise ValueError(f"{path} has the schema {data.get('schema')!r}, not {SCHEMA}")
    return read_dataclass(Report, data, str(path))


def continued(report: Report, out: Path) -> Report:
    """The report with the runs that the file holds already.

    Raises:
        ValueError: the file holds other runs, or their commit is unknown or not clean.
    """
    advice = "choose another --out, or replace it with --overwrite"
    try:
        before = load(out)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    if different := [name for name in SAME if getattr(before, name) != getattr(report, name)]:
        values = "; ".join(
            f"{name}: {getattr(before, name)}, now {getattr(report, name)}" for name in different
        )
        raise ValueError(f"{out} holds runs that were made otherwise ({values}); {advice}")
    if not is_clean(report.commit):
        raise ValueError(
            f"{out} holds runs of {report.commit or 'an unknown commit'}, whose code may have been "
            f"another; commit, then {advice}"
        )
    commands = tuple(dict.fromkeys((*before.commands, *report.commands)))
    return replace(before, commands=commands)


def train_and_evaluate(
    config: RunConfig, settings: Mapping[str, Any], *, data_root: str | None, title: str
) -> Run:
    """One run from its first step to its test score, with a bar on a terminal."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(desc=title, unit="step", disable=None, dynamic_ncols=True, leave=False) as bar,
    ):

        def start(trainer: Trainer) -> None:
            bar.reset(total=trainer.total_steps)

        trainer = run_training(
            config,
            Path(folder),
            checkpoint_every=config.training.epochs,
            data_root=data_root,
            on_start=start,
            on_step=bar.update,
        )
        _, test = evaluate_checkpoint(Path(folder) / CHECKPOINT, data_root=data_root)
    return Run(
        gradient=config.equilibrium.gradient,
        settings=dict(settings),
        seed=config.training.seed,
        test_score=test.value,
        validation_score=trainer.history[-1].validation.value,
        test_loss=test.loss,
        solver_steps=test.solver_steps,
        training_seconds=round(sum(metrics.seconds for metrics in trainer.history), 1),
    )


def missing(
    report: Report, variants: Sequence[Variant], seeds: Sequence[int]
) -> Iterator[tuple[int, Variant]]:
    """The runs still to be made; all gradients of a seed, then the next seed."""
    done = [(run.seed, (run.gradient, run.settings)) for run in report.runs]
    for seed in seeds:
        for variant in variants:
            if (seed, variant) not in done:
                yield seed, variant


def describe(variant: Variant) -> str:
    """A gradient with its settings, in short."""
    gradient, settings = variant
    values = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in settings.items())
    return f"{gradient} ({values})" if values else gradient


def summary(report: Report) -> str:
    """A line per gradient: mean, smallest and largest score over the seeds, and solver steps."""
    groups: dict[str, list[Run]] = {}
    for run in report.runs:
        groups.setdefault(describe((run.gradient, run.settings)), []).append(run)
    rows = [[f"test {report.score}", "mean", "smallest", "largest", "seeds", "steps", "seconds"]]
    for name, runs in groups.items():
        scores = [run.test_score for run in runs]
        steps = [run.solver_steps for run in runs if run.solver_steps is not None]
        rows.append(
            [
                name,
                *(f"{value:.4f}" for value in (statistics.mean(scores), min(scores), max(scores))),
                str(len(runs)),
                f"{statistics.mean(steps):.1f}" if steps else "-",
                f"{statistics.mean(run.training_seconds for run in runs):.1f}",
            ]
        )
    return "\n".join(align(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(arguments)
    out: Path = args.out.resolve()
    try:
        config, variants = plan(args)
        if not out.parent.is_dir():
            raise ValueError(f"--out is a file in a folder that is there; {out.parent} is not.")
        report = begin(config, out, shlex.join(["python", "-m", "benchmarks.accuracy", *arguments]))
        if out.exists() and not args.overwrite:
            report = continued(report, out)
        elif not is_clean(report.commit):
            print(
                f"warning: the commit is {report.commit or 'unknown'}; the file does not say what "
                "code this was, and a run that is interrupted is not continued",
                file=sys.stderr,
            )
        measure, shared = find_task(config.task).measure, parse_settings(args.settings)
        planned = list(missing(report, variants, args.seeds))
        if report.runs:
            print(f"runs in {out}: {len(report.runs)}; to be made: {len(planned)}")
        for number, (seed, variant) in enumerate(planned, start=1):
            title = f"[{number}/{len(planned)}] {describe(variant)}, seed {seed}"
            run = train_and_evaluate(
                with_variant(config, variant, seed, shared),
                variant[1],
                data_root=args.data_root,
                title=title,
            )
            report = replace(report, runs=(*report.runs, run))
            save_report(report, out)
            print(
                f"{title}: test {measure.format(run.test_score)}, {run.training_seconds:.1f} s",
                flush=True,
            )
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        return fail(str(error))
    print(summary(report))
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
