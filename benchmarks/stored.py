"""Reports as JSON: dataclasses written, and read back with every field checked."""

import json
import reprlib
import sys
import types
import typing
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deq_zoo.files import write_atomically

if TYPE_CHECKING:
    from .suite_report import Report

_T = TypeVar("_T")


def save_report(report: "Report", path: Path) -> None:
    """Write the report as JSON; a crash leaves either the old file or the new one."""
    text = json.dumps(asdict(report), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def build(kind: type[_T], data: Any, where: str) -> _T:
    """Make a dataclass from plain values, and those nested in it."""
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
        **{name: _convert(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, where)
    if is_dataclass(hint):
        return build(typing.cast("type", hint), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(
            _convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, dict):
        return {
            _convert(arguments[0], name, where): _convert(arguments[1], item, f"{where}: {name}")
            for name, item in value.items()
        }
    if not _fits(hint, value):
        raise damaged(where, f"must be {getattr(hint, '__name__', hint)}", value)
    return value


def _one_of(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first option that fits; where none does, the error of the last one."""
    if value is None and types.NoneType in options:
        return None
    *others, last = (option for option in options if option is not types.NoneType)
    for option in others:
        try:
            return _convert(option, value, where)
        except ValueError:
            continue
    return _convert(last, value, where)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value, as `save_report` writes it, is one of a type."""
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
    return ValueError(f"{where} {contract}, but got {reprlib.repr(value)}; it is damaged")
