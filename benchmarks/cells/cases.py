"""The benchmark cases: how many graphs, how large, how many features."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATTERN = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(-chains)?")


@dataclass(frozen=True)
class CellCase:
    """One batch of graphs.

    Attributes:
        graphs: how many.
        nodes: of a graph. Random graphs, where there are several, have three to five quarters of
            that; chains are all of that length.
        features: of a node.
        chains: directed chains instead of random undirected graphs.
    """

    graphs: int
    nodes: int
    features: int
    chains: bool = False

    @property
    def name(self) -> str:
        """The name on the command line: ``GRAPHSxNODESxFEATURES``, with ``-chains`` for those."""
        suffix = "-chains" if self.chains else ""
        return f"{self.graphs}x{self.nodes}x{self.features}{suffix}"


CASES = (CellCase(128, 40, 64), CellCase(1, 2000, 256), CellCase(40, 10, 16, chains=True))
QUICK_CASES = (CellCase(128, 40, 64), CellCase(40, 10, 16, chains=True))


def parse_case(text: str) -> CellCase:
    """Read ``GRAPHSxNODESxFEATURES[-chains]``; cases that are in no list here are allowed.

    Raises:
        ValueError: the text is not three positive integers joined by ``x``.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            "a case is GRAPHSxNODESxFEATURES with three positive integers, and -chains after them "
            f"for directed chains, but got {text!r}; write for example {CASES[0].name}"
        )
    graphs, nodes, features = (int(match[group]) for group in (1, 2, 3))
    return CellCase(graphs, nodes, features, chains=match[4] is not None)
