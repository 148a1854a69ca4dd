"""A parser whose options are found out when they are needed, as that may import much."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


class LazyParser(argparse.ArgumentParser):
    """An argument parser that adds its arguments when it first parses.

    Args:
        fill: adds them.
        **options: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, fill: Callable[[argparse.ArgumentParser], None], **options: Any) -> None:
        super().__init__(**options)
        self._fill: Callable[[argparse.ArgumentParser], None] | None = fill

    def parse_known_args(  # type: ignore[override]  # the base class has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Fill the parser, then parse."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return super().parse_known_args(args, namespace)
