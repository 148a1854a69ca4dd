"""Checks of options: each error names the option, what it must be, and what came.

Public, for solvers, gradients and models of one's own.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

__all__ = [
    "Options",
    "check_callback",
    "check_choice",
    "check_count",
    "check_damping",
    "check_flag",
    "check_kind",
    "check_names",
    "check_not_negative",
    "check_number",
    "check_option",
    "check_positive",
    "plain",
]

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


def check_kind(name: str, value: object, kind: type, advice: str) -> None:
    """Raise TypeError unless an argument is an instance of a class of this package.

    Args:
        name: the argument.
        value: what came; often a name, as other packages take, or the class itself.
        kind: the class.
        advice: what to pass, such as "dk.Broyden()".
    """
    if isinstance(value, kind):
        return
    came = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    if isinstance(value, type) and issubclass(value, kind):
        advice = f"an instance, {value.__name__}()"
    raise TypeError(f"{name} must be a deq_kernels.{kind.__name__}; got {came}. Pass {advice}.")


def plain(value: Any) -> Any:
    """NumPy's scalars as Python numbers, and everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def check_names(owner: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise TypeError where an option of `owner` is unknown, with the nearest known name."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(sorted(known))}."
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}. {hint}")


class Options:
    """Base of dataclasses whose fields are options: names are checked, NumPy's numbers taken."""

    def __new__(cls, *args: object, **options: object) -> Any:
        """Refuse unknown names before the generated constructor does, which knows no advice."""
        known = _keywords(cls.__init__)
        if known is not None:
            check_names(cls.__name__, options, known)
        return super().__new__(cls)

    def _take_numpy_numbers(self) -> None:
        """Replace NumPy's scalars by the Python numbers that they are, for ops and for repr."""
        numpy_numbers = [name for name, x in vars(self).items() if isinstance(x, np.generic)]
        for name in numpy_numbers:
            object.__setattr__(self, name, plain(vars(self)[name]))


@functools.cache
def _keywords(init: Callable[..., None]) -> frozenset[str] | None:
    """The keywords of a constructor; None where it takes any."""
    parameters = inspect.signature(init).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters) - {"self"}
