"""Nested frozen dataclasses with settings by dotted names: from text, and from JSON values."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from deq_zoo.typed import read_value

C = TypeVar("C")

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def settings_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of a config with their values, by dotted name such as training.epochs."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        found.update(settings_of(value, name + ".") if is_dataclass(value) else {name: value})
    return found


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """A config with other values; those of one section are set together, then checked.

    Args:
        config: nested frozen dataclasses.
        settings: by dotted name; a string is read as the setting's type, another value is taken as
            what JSON makes of that type.

    Raises:
        ValueError: there is no such setting, the value is not of its type, or the config's own
            checks refuse it.
    """
    known = settings_of(config)
    for name in settings:
        if name not in known:
            raise ValueError(
                f"no setting is called {name!r}{_suggestion(name, known)}; there are: "
                f"{', '.join(known)}."
            )
    return _with(config, settings, "")


def _suggestion(name: str, known: Iterable[str]) -> str:
    """The settings that may have been meant, judged by what follows the section."""
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for setting in known:
        by_last.setdefault(setting.rpartition(".")[2], []).append(setting)
    near = [setting for key in get_close_matches(last, by_last) for setting in by_last[key]]
    return f", but {' and '.join(near)}" if near else ""


def parse_settings(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE, as on a command line, to a mapping.

    Raises:
        ValueError: there is no "=", or a name comes twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ValueError(f"a setting is NAME=VALUE, such as training.epochs=3; got {text!r}.")
        if name in settings:
            raise ValueError(f"the setting {name} comes twice; give it once.")
        settings[name] = value
    return settings


def _with(config: Any, settings: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for field in fields(config):
        name, old = prefix + field.name, getattr(config, field.name)
        if is_dataclass(old):
            inner = {key: value for key, value in settings.items() if key.startswith(name + ".")}
            if inner:
                changes[field.name] = _with(old, inner, name + ".")
        elif name in settings:
            changes[field.name] = _convert(name, hints[field.name], settings[name])
    return replace(config, **changes)


def _convert(name: str, hint: Any, value: Any) -> Any:
    try:
        return read_value(hint, _plain(hint, value) if isinstance(value, str) else value, name)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {_describe(hint)}; got {_shown(value)}.") from error


def _shown(value: Any) -> str:
    """What came, in a line."""
    text = reprlib.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(hint: Any, text: str) -> Any:
    """What a text of the command line stands for, as JSON has it; the text where it is nothing."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (only,) = (part for part in inner if part is not type(None))
        return None if text == "none" else _plain(only, text)
    if origin is tuple:
        return [_plain(inner[0], part) for part in text.split(",") if part.strip()]
    if hint is bool:
        return TRUTH.get(text.lower(), text)
    return hint(text) if hint in (int, float) else text


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (only,) = (part for part in inner if part is not type(None))
        return f"{_describe(only)}, or none"
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return "values separated by commas, each " + _describe(inner[0])
        return f"{len(inner)} values separated by commas, each " + _describe(inner[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    return _NAMES[hint]
