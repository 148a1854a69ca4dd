"""How the command lines of this project run and end: exit statuses, errors, closed streams."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

__all__ = ["EXPECTED", "FAILED", "USAGE_ERROR", "fail", "fail_with", "run_program"]

FAILED = 1
"""The exit status of a command that could not do what it was asked for."""

USAGE_ERROR = 2
"""The exit status of options that cannot be met, as argparse uses it."""

INTERRUPTED = 130
READER_GONE = 141

EXPECTED = (FloatingPointError, ImportError, OSError, ValueError)
"""What a command raises where it cannot do what it was asked for."""


def run_program(
    build: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None = None
) -> int:
    """Parse the command line, call what the parser has set as `run`, and return its exit status.

    130 after Ctrl-C, and 141 where the reader of the output has gone, as a shell has it of programs
    that these signals end. Streams that were closed before the start are taken for /dev/null.

    Args:
        build: makes the parser; the default `run` of its namespace takes the parsed arguments and
            returns an exit status.
        argv: the arguments; None for those of the process.
    """
    _open_closed_streams()
    try:
        status = _run(build, argv)
    except BrokenPipeError:  # the output goes to a pager or `head` that has seen enough
        status = READER_GONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except OSError as error:  # of printing: commands report those of their files
        status = _unwritten(error)
    return _flush(status)


def fail_with(error: Exception) -> int:
    """Print an expected error; return the exit status to end with.

    Raises:
        BrokenPipeError: where that is the error: the reader of the output has gone.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    return fail(str(error))


def fail(message: str, status: int = USAGE_ERROR) -> int:
    """Print an error to standard error; return the exit status to end with."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _run(build: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    try:
        args = build().parse_args(argv)
    except SystemExit:
        sys.stdout.flush()  # of a help text whose reader has gone, too
        raise
    status: int = args.run(args)
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
    return FAILED
