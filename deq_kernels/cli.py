"""The command line `deq-kernels`; each subcommand is a module of `deq_kernels.commands`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from deq_kernels._version import __version__

COMMANDS = ("info", "bench", "train", "demo")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        status: int = _module(args.command).run(args)
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
