"""The command line `deq-zoo`; each subcommand is a module of `deq_zoo.commands`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from deq_kernels import __version__
from deq_kernels.program import run_program

COMMANDS = ("train", "evaluate", "demo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status.

    Ctrl-C, or a reader of the output that goes away, ends a training after its last checkpoint.
    """
    return run_program(build_parser, argv)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="deq-zoo",
        description="Train and evaluate deep equilibrium models with the recipes of their papers.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"deq_zoo.commands.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
