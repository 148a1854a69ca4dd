"""`deq-kernels train`: train a reference model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deq_kernels.commands.errors import fail
from deq_kernels.commands.numbers import (
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from deq_kernels.models.mdeq.config import PRESETS
from deq_kernels.training.config import DATASETS, GRADIENTS, SOLVERS, TrainingConfig

if TYPE_CHECKING:
    from deq_kernels.training.loop import Trainer
    from deq_kernels.training.metrics import EpochMetrics

MODELS = ("mdeq",)
DEFAULTS = TrainingConfig()
EPILOG = """\
written to --out: config.json (the options), metrics.jsonl (one line per epoch),
checkpoint.safetensors (everything needed to resume) and training.png.

examples:
  deq-kernels train mdeq --out runs/shine
  deq-kernels train mdeq --gradient implicit --epochs 20 --seed 1 --out runs/implicit
  deq-kernels train mdeq --out runs/shine --resume
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a reference model",
        description="Train a deep equilibrium model: first unrolled, then at its equilibrium.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=MODELS, help="the model")
    _add_problem(parser.add_argument_group("problem"))
    _add_equilibrium(parser.add_argument_group("equilibrium"))
    _add_optimisation(parser.add_argument_group("optimisation"))
    _add_output(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    """Train; return the exit status."""
    from deq_kernels.training.run import RunFolderError

    try:
        config = TrainingConfig(
            data=args.data,
            preset=args.preset,
            gradient=args.gradient,
            solver=args.solver,
            solver_steps=args.steps,
            rtol=args.rtol,
            gradient_steps=args.gradient_steps,
            damping=args.damping,
            pretrain_epochs=args.pretrain_epochs,
            pretrain_steps=args.pretrain_steps,
            epochs=args.epochs,
            batch_size=args.batch_size,
            learning_rate=args.lr,
            weight_decay=args.weight_decay,
            seed=args.seed,
            threads=args.threads,
        )
        train_with_progress(
            config, args.out, resume=args.resume, checkpoint_every=args.checkpoint_every
        )
    except RunFolderError as error:
        return fail(f"{error}; continue it with --resume, or choose another --out")
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        return fail(str(error))
    return 0


def train_with_progress(
    config: TrainingConfig, out: Path, *, resume: bool = False, checkpoint_every: int = 1
) -> "Trainer":
    """Train with a progress bar on a terminal, and one printed line per epoch.

    Raises:
        ImportError: a package of the extra `train` is not installed.
        ValueError: see `run_training`.
    """
    from deq_kernels.optional import optional_import
    from deq_kernels.training.run import PLOT, run_training

    with optional_import(extra="train"):
        from tqdm import tqdm

    # disable=None: no bar where standard error is not a terminal.
    with tqdm(unit="step", disable=None, dynamic_ncols=True) as bar:

        def start(trainer: "Trainer") -> None:
            parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
            tqdm.write(
                f"MDEQ {config.preset} on {config.data}: {parameters:,} parameters, state of "
                f"{trainer.model.config.state_dim:,} numbers per image, gradient "
                f"{config.gradient}, solver {config.solver}; writing to {out}"
            )
            bar.reset(total=trainer.total_steps)
            bar.update(trainer.step)

        trainer = run_training(
            config,
            out,
            resume=resume,
            checkpoint_every=checkpoint_every,
            on_start=start,
            on_step=bar.update,
            on_epoch=lambda metrics: tqdm.write(format_epoch(metrics, config)),
        )
    print(f"done: {out / PLOT}")
    return trainer


def format_epoch(metrics: "EpochMetrics", config: TrainingConfig) -> str:
    """One line about one epoch."""
    validation = metrics.validation
    line = (
        f"epoch {metrics.epoch:3d}/{config.total_epochs} {metrics.phase:<11s}  "
        f"loss {metrics.train.loss:.4f}  validation loss {validation.loss:.4f}  "
        f"accuracy {100 * validation.accuracy:5.2f} %"
    )
    if validation.solver_steps is not None and validation.converged is not None:
        line += (
            f"  solver steps {validation.solver_steps:4.1f}  "
            f"converged {100 * validation.converged:3.0f} %"
        )
    return f"{line}  {metrics.seconds:.1f} s"


def _add_problem(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--data",
        choices=DATASETS,
        default=DEFAULTS.data,
        help="dataset; digits: 1797 images of 8x8 pixels that come with scikit-learn, 20 %% of "
        "them held out (default: %(default)s)",
    )
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=DEFAULTS.preset,
        help="architecture, adapted to the image size of the data (default: %(default)s)",
    )


def _add_equilibrium(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--gradient",
        choices=GRADIENTS,
        default=DEFAULTS.gradient,
        help="gradient estimator; jfb is the Jacobian-free one (default: %(default)s)",
    )
    group.add_argument(
        "--solver",
        choices=SOLVERS,
        default=DEFAULTS.solver,
        help="forward solver (default: %(default)s)",
    )
    group.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="most evaluations of the cell per forward solve (default: the preset's, "
        f"{PRESETS[DEFAULTS.preset].forward_steps} for {DEFAULTS.preset})",
    )
    group.add_argument(
        "--rtol",
        type=positive_float,
        default=DEFAULTS.rtol,
        metavar="TOL",
        help="a solve stops where the residual is below TOL times the norm of the cell's output "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--gradient-steps",
        type=positive_int,
        metavar="K",
        help="implicit: most steps of the backward solve (default: the preset's); neumann, "
        "unrolled: number of steps (default: 5)",
    )
    group.add_argument(
        "--damping",
        type=positive_float,
        metavar="LAMBDA",
        help="neumann, unrolled: share of the new value in each step, up to 1 (default: 0.5)",
    )


def _add_optimisation(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--epochs",
        type=non_negative_int,
        default=DEFAULTS.epochs,
        metavar="N",
        help="epochs of equilibrium training (default: %(default)s)",
    )
    group.add_argument(
        "--pretrain-epochs",
        type=non_negative_int,
        default=DEFAULTS.pretrain_epochs,
        metavar="N",
        help="epochs of unrolled training before that (default: %(default)s)",
    )
    group.add_argument(
        "--pretrain-steps",
        type=positive_int,
        metavar="N",
        help="applications of the cell in unrolled training (default: the preset's, "
        f"{PRESETS[DEFAULTS.preset].pretrain_steps} for {DEFAULTS.preset})",
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        default=DEFAULTS.batch_size,
        metavar="N",
        help="images per optimiser step (default: %(default)s)",
    )
    group.add_argument(
        "--lr",
        type=positive_float,
        default=DEFAULTS.learning_rate,
        metavar="RATE",
        help="Adam's first learning rate; a cosine lowers it to 1e-6 (default: %(default)s)",
    )
    group.add_argument(
        "--weight-decay",
        type=non_negative_float,
        default=DEFAULTS.weight_decay,
        metavar="W",
        help="Adam's weight decay (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=non_negative_int,
        default=DEFAULTS.seed,
        metavar="N",
        help="seed of weights, split, batches and dropout, below 2^32 (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        type=positive_int,
        default=DEFAULTS.threads,
        metavar="N",
        help="processor threads; more help larger presets only (default: %(default)s)",
    )


def _add_output(group: "argparse._ArgumentGroup") -> None:
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
