"""Numbers on the command line: argparse types that say what they expect."""

import argparse


def positive_int(text: str) -> int:
    """A whole number, at least 1."""
    value = non_negative_int(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1, got 0")
    return value


def non_negative_int(text: str) -> int:
    """A whole number, at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 0, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = non_negative_float(text)
    if value == 0.0:
        raise argparse.ArgumentTypeError("must be above 0, got 0")
    return value


def non_negative_float(text: str) -> float:
    """A finite number, at least 0."""
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text!r}")
    return value
