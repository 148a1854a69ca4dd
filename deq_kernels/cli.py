"""The command line `deq-kernels`; each subcommand is a module of `deq_kernels.commands`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from deq_kernels._version import __version__

COMMANDS = ("info", "bench", "train", "evaluate", "demo")
INTERRUPTED = 130
READER_GONE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        status: int = _module(args.command).run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the output goes to a pager or `head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="deq-kernels",
        description="Fused kernels and gradient estimators for deep equilibrium models.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        _module(name).add_parser(subparsers)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"deq_kernels.commands.{name}")


if __name__ == "__main__":
    sys.exit(main())
