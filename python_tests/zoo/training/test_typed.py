"""Dataclasses from plain values: what fits, and what is refused with its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from deq_zoo.typed import read_dataclass, read_value


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None = None


@dataclass(frozen=True)
class Shape:
    kind: Literal["line", "area"]
    points: tuple[Point, ...]
    size: tuple[int, int]
    notes: dict[str, int | str]


PLAIN = {"kind": "line", "points": [{"x": 1}], "size": [2, 3], "notes": {"a": 1, "b": "c"}}


def test_nested_values_get_their_types() -> None:
    shape = read_dataclass(Shape, PLAIN, "it")
    assert shape == Shape("line", (Point(1.0),), (2, 3), {"a": 1, "b": "c"})
    assert type(shape.points[0].x) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dot"}, "it: kind must be"),
        ({"points": [{"x": "1"}]}, r"it: points\[0\]: x must be float, but got '1'"),
        ({"points": [{"x": True}]}, r"points\[0\]: x must be float"),
        ({"points": [{}]}, r"it: points\[0\] lacks x"),
        ({"points": [{"x": 1, "y": 2}]}, r"unknown fields \['y'\]"),
        ({"size": [2]}, "it: size must be 2 values"),
        ({"size": [2, 3.5]}, r"it: size\[1\] must be int"),
        ({"notes": {"a": None}}, "it: notes: a must be"),
        ({"notes": {"a": "\ud800"}}, "it: notes: a must be"),
    ],
)
def test_other_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dataclass(Shape, {**PLAIN, **change}, "it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="it must be float"):
        read_value(float, value, "it")
