"""How a subcommand says that it could not do what it was asked for."""

import sys

USAGE_ERROR = 2
"""The exit status of options that cannot be met, as argparse uses it."""


def fail(message: str, status: int = USAGE_ERROR) -> int:
    """Print an error to standard error; return the exit status to end with."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
