"""Dataclasses from plain values, such as JSON has, with every field checked against its type."""

import reprlib
import sys
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")


def read_dataclass(kind: type[_T], data: Any, where: str) -> _T:
    """Make a dataclass from plain values, and those nested in it.

    Args:
        kind: the dataclass.
        data: its fields by name; those with a default may be left out.
        where: they stand, for the message.

    Raises:
        ValueError: a field is missing, unknown, or of another type.
    """
    if not isinstance(data, dict):
        raise damaged(where, f"must be the fields of a {kind.__name__}", data)
    known = fields(typing.cast("Any", kind))
    required = {field.name for field in known if field.default is MISSING}
    if missing := required - set(data):
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}; it is damaged")
    if unknown := set(data) - {field.name for field in known}:
        raise ValueError(f"{where} has unknown fields {sorted(unknown)}; it is damaged")
    hints = typing.get_type_hints(kind)
    return kind(
        **{name: read_value(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    )


def read_value(hint: Any, value: Any, where: str) -> Any:
    """The value as one of a type: a scalar, Literal, union, tuple, dict or dataclass.

    Args:
        hint: the type, as `typing.get_type_hints` gives it.
        value: what JSON makes of it; a tuple may be a list.
        where: it stands, for the message.

    Raises:
        ValueError: it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, where)
    if is_dataclass(hint):
        return read_dataclass(typing.cast("type", hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(kinds):
            raise damaged(where, f"must be {len(kinds)} values", value)
        return tuple(
            read_value(kind, item, f"{where}[{index}]")
            for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {
            read_value(arguments[0], name, where): read_value(
                arguments[1], item, f"{where}: {name}"
            )
            for name, item in value.items()
        }
    if not _fits(hint, value):
        raise damaged(where, f"must be {getattr(hint, '__name__', hint)}", value)
    return float(value) if hint is float else value


def _one_of(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first option that fits; where none does, the error of the last one."""
    if value is None and types.NoneType in options:
        return None
    *others, last = (option for option in options if option is not types.NoneType)
    for option in others:
        try:
            return read_value(option, value, where)
        except ValueError:
            continue
    return read_value(last, value, where)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value is one of a type."""
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if hint is float or hint is int:
        kinds = (int, float) if hint is float else int
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
    if hint is str and isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return hint is Any or isinstance(value, typing.get_origin(hint) or hint)


def damaged(where: str, contract: str, value: object) -> ValueError:
    """The error that names the place, what must stand there, and what came."""
    return ValueError(f"{where} {contract}, but got {reprlib.repr(value)}; it is damaged")
