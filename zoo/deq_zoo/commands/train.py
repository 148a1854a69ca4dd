"""`deq-zoo train`: train a reference model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_kernels.program import EXPECTED, fail, fail_with
from deq_zoo.commands.lazy_parser import LazyParser
from deq_zoo.commands.numbers import positive_int
from deq_zoo.equilibrium import GRADIENTS, SOLVERS
from deq_zoo.machine import DTYPES
from deq_zoo.registry import MODELS, find_task, run_config
from deq_zoo.settings import parse_settings, settings_of

if TYPE_CHECKING:
    from deq_zoo.loop import Trainer
    from deq_zoo.metrics import EpochMetrics
    from deq_zoo.presets import RunConfig
    from deq_zoo.solves import SolveTally

OPTIONS = {
    "gradient": "equilibrium.gradient",
    "solver": "equilibrium.solver",
    "epochs": "training.epochs",
    "seed": "training.seed",
    "device": "machine.device",
    "dtype": "machine.dtype",
    "compile": "machine.compile",
}
"""Settings that have an option of their own."""

EPILOG = """\
written to --out: config.json (every setting), metrics.jsonl (one line per epoch),
checkpoint.safetensors (everything needed to resume and to evaluate) and training.png.

examples:
  deq-zoo train {name} --out runs/first
  deq-zoo train {name} --gradient implicit --epochs 20 --seed 1 --out runs/implicit
  deq-zoo train {name} --set training.learning_rate=1e-3 --out runs/slow
  deq-zoo train {name} --out runs/first --resume
  torchrun --nproc-per-node 2 -m deq_zoo.cli train {name} --out runs/two

The exit status is 130 after Ctrl-C, and 141 where the reader of the output has gone; --resume goes
on from the last checkpoint.

settings for --set, with their values in the preset {preset}:
{settings}
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a reference model",
        description="Train a deep equilibrium model: first unrolled, where its recipe says so, "
        "then at its equilibrium. Each model has its own --help.",
    )
    models = parser.add_subparsers(
        dest="model", metavar="MODEL", required=True, parser_class=LazyParser
    )
    for name, entry in MODELS.items():
        models.add_parser(
            name,
            help=entry.summary,
            description=f"Train a model: {entry.summary}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            fill=_fill(name),
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; return the exit status."""
    from deq_zoo.folder import RunFolderUsedError

    try:
        train_with_progress(
            config_of(args),
            args.out,
            resume=args.resume,
            checkpoint_every=args.checkpoint_every,
            data_root=args.data_root,
        )
    except RunFolderUsedError as error:
        return fail(f"{error}; continue it with --resume, or choose another --out")
    except EXPECTED as error:
        return fail_with(error)
    return 0


def config_of(args: argparse.Namespace) -> RunConfig:
    """The config that the parsed options ask for.

    Raises:
        ValueError: a setting is unknown, refused, or given twice.
    """
    settings: dict[str, Any] = dict(parse_settings(args.settings))
    for option, name in OPTIONS.items():
        value = getattr(args, option)
        if value is None:
            continue
        if name in settings:
            raise ValueError(f"--{option} and --set {name} are the same; give one of them.")
        settings[name] = value
    return run_config(args.model, preset=args.preset, data=args.data, settings=settings)


def train_with_progress(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 1,
    data_root: str | None = None,
) -> Trainer:
    """Train with a progress bar on a terminal, and one printed line per epoch.

    Raises:
        ValueError: see `run_training`.
    """
    from tqdm import tqdm

    from deq_zoo.folder import PLOT
    from deq_zoo.processes import launched_processes
    from deq_zoo.run import run_training

    with launched_processes(config.machine.device) as processes:
        speaks = processes.rank == 0
        # disable=None: no bar where standard error is not a terminal.
        with tqdm(unit="step", disable=None if speaks else True, dynamic_ncols=True) as bar:
            solves: list[SolveTally] = []

            def start(trainer: Trainer) -> None:
                solves.append(trainer.solves)
                if speaks:
                    tqdm.write(describe_run(trainer, out))
                    if pretrains_only(trainer):
                        tqdm.write(
                            f"note: pretraining takes {config.training.pretraining_steps} steps, "
                            f"and this run has {trainer.total_steps}: it ends before training at "
                            "the equilibrium begins. Raise --epochs, or lower "
                            "training.pretraining_steps."
                        )
                bar.reset(total=trainer.total_steps)
                bar.update(trainer.step)

            def finish_epoch(metrics: EpochMetrics) -> None:
                tqdm.write(format_epoch(metrics, config.training.epochs))
                if (note := solves[0].note()) is not None:
                    tqdm.write(note)

            trainer = run_training(
                config,
                out,
                resume=resume,
                checkpoint_every=checkpoint_every,
                data_root=data_root,
                processes=processes,
                on_start=start,
                on_step=bar.update,
                on_epoch=finish_epoch,
            )
    if speaks:
        only = ", pretrained only" if pretrains_only(trainer) else ""
        print(f"done{only}: {out / PLOT}")
    return trainer


def pretrains_only(trainer: Trainer) -> bool:
    """Whether pretraining covers the whole run, so that nothing is trained at the equilibrium."""
    return trainer.config.training.pretraining_steps >= trainer.total_steps


def describe_run(trainer: Trainer, out: Path) -> str:
    """One line about what is about to be trained."""
    config, count = trainer.config, trainer.processes.count
    return (
        f"{config.task} {config.preset} on {config.data}: {trainer.task.describe()}, "
        f"gradient {config.equilibrium.gradient}, solver {config.equilibrium.solver}"
        f"{f', {count} processes' if count > 1 else ''}; writing to {out}"
    )


def format_epoch(metrics: EpochMetrics, epochs: int) -> str:
    """One line about one epoch."""
    validation = metrics.validation
    line = (
        f"epoch {metrics.epoch:3d}/{epochs} {metrics.phase:<11s}  "
        f"loss {metrics.train.loss:.4f}  validation loss {validation.loss:.4f}  "
        f"{validation.format_value()}"
    )
    if validation.solver_steps is not None and validation.converged is not None:
        line += (
            f"  solver steps {validation.solver_steps:4.1f}  "
            f"converged {100 * validation.converged:3.0f} %"
        )
    return f"{line}  {metrics.seconds:.1f} s"


def _fill(name: str) -> Callable[[argparse.ArgumentParser], None]:
    def fill(parser: argparse.ArgumentParser) -> None:
        default = run_config(name)
        width = max(map(len, settings_of(default)))
        settings = "\n".join(
            f"  {key:<{width}}  {_text(value)}"
            for key, value in settings_of(default).items()
            if "." in key
        )
        parser.epilog = EPILOG.format(name=name, preset=default.preset, settings=settings)
        add_problem(parser.add_argument_group("problem"), name)
        _add_settings(parser.add_argument_group("settings"), default)
        _add_output(parser.add_argument_group("output"))

    return fill


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def add_problem(group: argparse._ArgumentGroup, name: str) -> None:
    """Add the options that say what is trained on what."""
    task = find_task(name)
    datasets = "; ".join(f"{data}: {text}" for data, text in task.datasets.items())
    group.add_argument(
        "--preset",
        choices=tuple(task.presets),
        help="model and recipe to begin with (default: %(default)s)",
        default=next(iter(task.presets)),
    )
    group.add_argument(
        "--data",
        choices=tuple(task.datasets),
        help=f"dataset; {datasets.replace('%', '%%')} (default: the preset's)",
    )
    group.add_argument(
        "--data-root", metavar="DIR", help="folder of a dataset that is read from disk"
    )


def _add_settings(group: argparse._ArgumentGroup, default: RunConfig) -> None:
    group.add_argument(
        "--gradient",
        choices=GRADIENTS,
        help="gradient estimator; jfb: Jacobian-free, neumann: NPG, unrolled: UPG (default: the "
        f"preset's, {default.equilibrium.gradient} for {default.preset})",
    )
    group.add_argument(
        "--solver",
        choices=SOLVERS,
        help="forward solver (default: the preset's, "
        f"{default.equilibrium.solver} for {default.preset})",
    )
    group.add_argument(
        "--epochs",
        metavar="N",
        help="passes over the training data (default: the preset's, "
        f"{default.training.epochs} for {default.preset})",
    )
    group.add_argument(
        "--seed", metavar="N", help="of everything random, below 2^32 (default: the preset's)"
    )
    group.add_argument("--device", help=f"cpu, cuda or cuda:N (default: {default.machine.device})")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="number format; bfloat16 by autocast, with float32 parameters "
        f"(default: {default.machine.dtype})",
    )
    group.add_argument(
        "--compile",
        action="store_const",
        const=True,
        help="evaluate the cell through torch.compile",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="change one setting, see below; may be given several times",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for all output, created if needed; nothing is written elsewhere",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out; the other options must be those it was started with",
    )
    group.add_argument(
        "--checkpoint-every",
        type=positive_int,
        default=1,
        metavar="N",
        help="epochs between checkpoints (default: %(default)s)",
    )
