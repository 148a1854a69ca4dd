"""Checks of options: each error names the option, what it must be, and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

LARGEST_COUNT = 2**31 - 1
"""More than any solve could take or store."""


def check_option(name: str, value: object, holds: bool, contract: str) -> None:
    """Raise ValueError unless the contract on an option holds."""
    if not holds:
        raise ValueError(f"{name} must be {contract}; got {value!r}.")


def check_number(name: str, value: object, holds: Callable[[float], bool], contract: str) -> None:
    """Raise ValueError unless an option is a number for which `holds`, as it does not for NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, {contract}; got {value!r}.")
    check_option(name, value, holds(value), contract)


def check_positive(name: str, value: object, *, or_else: str = "") -> None:
    """Raise ValueError unless an option is a finite number above 0.

    Args:
        name: the option.
        value: what came.
        or_else: what the option may be as well, for the message.
    """
    contract = "finite and above 0" + (f", or {or_else}" if or_else else "")
    check_number(name, value, lambda x: 0 < x < math.inf, contract)


def check_not_negative(name: str, value: object) -> None:
    """Raise ValueError unless an option is a finite number, at least 0."""
    check_number(name, value, lambda x: 0 <= x < math.inf, "finite and at least 0")


def check_damping(value: object) -> None:
    """Raise ValueError unless `damping` is a step length that solvers take."""
    check_number("damping", value, lambda x: 0 < x <= 2, "above 0 and at most 2")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless an option is a whole number, at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1; got {value!r}.")
    check_option(name, value, value <= LARGEST_COUNT, f"at most {LARGEST_COUNT}")


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless an option is True or False."""
    check_option(name, value, isinstance(value, bool), "a bool")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError unless an option is one of a few strings, or None where that is one."""
    known = (value is None or isinstance(value, str)) and value in choices
    check_option(name, value, known, f"one of {', '.join(map(repr, choices))}")


def check_callback(name: str, value: object) -> None:
    """Raise ValueError unless an option is None or can be called."""
    check_option(name, value, value is None or callable(value), "None or callable")
