"""The command line `deq-kernels`; each subcommand is a module of `deq_kernels.commands`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from deq_kernels._version import __version__

COMMANDS = ("info", "bench", "train", "evaluate", "demo")
UNWRITTEN = 1
INTERRUPTED = 130
READER_GONE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status.

    130 after Ctrl-C, and 141 where the reader of the output has gone, as a shell has it of programs
    that these signals end; either ends a training after its last checkpoint. Streams that were
    closed before the start are taken for /dev/null.
    """
    _open_closed_streams()
    try:
        status = _run(argv)
    except BrokenPipeError:  # the output goes to a pager or `head` that has seen enough
        status = READER_GONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except OSError as error:  # of printing: commands report those of their files
        status = _unwritten(error)
    return _flush(status)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
    except SystemExit:
        sys.stdout.flush()  # of a help text whose reader has gone, too
        raise
    status: int = _module(args.command).run(args)
    return status


def _open_closed_streams() -> None:
    """Let no file that is opened later take the place of a standard stream."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest free number, which is this one.
            descriptor = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            setattr(sys, name, os.fdopen(descriptor, "r" if number == 0 else "w"))


def _flush(status: int) -> int:
    """Write what is still to be written; the status, or another one where that is not possible."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Python flushes once more when it exits, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not status:
                gone = isinstance(error, BrokenPipeError)
                status = READER_GONE if gone else _unwritten(error)
    return status


def _unwritten(error: OSError) -> int:
    print(f"error: the output cannot be written: {error}", file=sys.stderr)
    return UNWRITTEN


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
