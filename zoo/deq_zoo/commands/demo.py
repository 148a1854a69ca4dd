"""`deq-zoo demo`: a short training, and all gradients compared on the model."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deq_kernels.program import EXPECTED, FAILED, fail, fail_with

if TYPE_CHECKING:
    from deq_zoo.compare import GradientTiming

SETTINGS: dict[str, object] = {"equilibrium.gradient": "shine"}
REQUIRED_ACCURACY = 0.95
DEFAULT_OUT = Path("deq-zoo-demo")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="a tour of a minute: a short training, and all gradients compared",
        description="Print what the installation runs on, train a small MDEQ on handwritten digits "
        "with SHINE, and compare the cost of all gradients on it. Takes about a minute on two idle "
        f"cores. The exit status is 1 if the model classifies fewer than {REQUIRED_ACCURACY:.0%} "
        "of the held-out digits correctly.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="folder for the plot and the trained model, which must not hold one already; "
        "nothing is written elsewhere (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Give the tour; return the exit status."""
    import torch

    from deq_kernels import backend_info
    from deq_zoo.commands.train import train_with_progress
    from deq_zoo.compare import compare_gradients
    from deq_zoo.folder import PLOT, RunFolderUsedError, check_folder, claimed_folder
    from deq_zoo.registry import run_config

    started = time.perf_counter()
    out: Path = args.out
    try:
        check_folder(out)
        with claimed_folder(out):  # before anything is printed
            pass
        config = run_config("mdeq", settings=SETTINGS)
        print(f"1. This installation\n\n{backend_info()}\n")
        print("2. Training a small MDEQ on handwritten digits with SHINE\n")
        trainer = train_with_progress(config, out)
    except RunFolderUsedError as error:
        return fail(f"{error}; choose another --out")
    except EXPECTED as error:
        return fail_with(error)
    print(f"\n3. All gradients on that model, on a batch of {config.training.batch_size} images\n")
    batch = next(trainer.task.batches(torch.Generator().manual_seed(0)))
    print(format_timings(compare_gradients(trainer.task, config, batch)))
    test = trainer.evaluate("test")
    print(
        f"\naccuracy on digits held out for the test: {test.value:.2%}\n"
        f"mean solver steps per image: {test.solver_steps:.1f}\n"
        f"plot: {out / PLOT}\n"
        f"total time: {time.perf_counter() - started:.0f} s"
    )
    if test.value < REQUIRED_ACCURACY:
        return fail(
            f"the accuracy is below {REQUIRED_ACCURACY:.0%}, which this training must reach: "
            "something is wrong with this installation",
            FAILED,
        )
    return 0


def format_timings(timings: "Sequence[GradientTiming]") -> str:
    """The table of all gradients."""
    lines = [
        f"{'gradient':<10s} {'forward ms':>10s} {'backward ms':>11s} {'cosine to implicit':>19s}"
    ]
    lines += [
        f"{timing.gradient:<10s} {1e3 * timing.forward_seconds:>10.1f} "
        f"{1e3 * timing.backward_seconds:>11.1f} {timing.cosine:>19.4f}"
        for timing in timings
    ]
    return "\n".join(lines)
