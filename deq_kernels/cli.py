"""The command line `deq-kernels`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deq_kernels import info
from deq_kernels._version import __version__
from deq_kernels.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run `deq-kernels` and return the exit status."""
    return run_program(build_parser, argv)


def build_parser() -> argparse.ArgumentParser:
    """The parser with its one subcommand."""
    parser = argparse.ArgumentParser(
        prog="deq-kernels",
        description="Fused kernels and gradient estimators for deep equilibrium models.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    info.add_parser(parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
    return parser


if __name__ == "__main__":
    sys.exit(main())
