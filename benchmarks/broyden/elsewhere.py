"""Solvers in a process of their own, which measures their time and memory itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .providers import Map


class SolverElsewhere(ABC):
    """A ``solve(f, z0, steps) -> z`` whose work is done in another process."""

    @property
    @abstractmethod
    def process(self) -> int | None:
        """The number of that process; None while it has not been started."""

    @abstractmethod
    def __call__(self, f: "Map", z0: "Tensor", steps: int) -> "Tensor":
        """Solve there, and bring the iterates here."""

    @abstractmethod
    def clock(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds of one solve there, like the one that ``call`` asked for last."""

    @abstractmethod
    def peak_bytes(self, f: "Map", z0: "Tensor", steps: int) -> int:
        """Growth of that process's resident memory to its peak during a solve."""
