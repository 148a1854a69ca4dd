"""How a subcommand says that it could not do what it was asked for."""

import sys

USAGE_ERROR = 2
"""The exit status of options that cannot be met, as argparse uses it."""


EXPECTED = (FloatingPointError, ImportError, OSError, ValueError)
"""What a command raises where it cannot do what it was asked for."""


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
