"""Reports as JSON: dataclasses written, and read back with every field checked."""

import json
import types
import typing
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deq_kernels.files import write_atomically

if TYPE_CHECKING:
    from .report import Report

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
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if is_dataclass(hint):
        return build(typing.cast("type", hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(
            _convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)
        )
    if origin is Literal:
        fits = value in arguments
    else:
        fits = isinstance(value, (int, float) if hint is float else origin or hint)
    if not fits:
        raise damaged(where, f"must be {getattr(hint, '__name__', hint)}", value)
    return value


def damaged(where: str, contract: str, value: object) -> ValueError:
    return ValueError(f"{where} {contract}, but got {value!r}; it is damaged")
