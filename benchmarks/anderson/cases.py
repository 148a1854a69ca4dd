"""The cases: those of Broyden's method, with Anderson's memory traffic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..broyden.cases import Case

if TYPE_CHECKING:
    from torch import Tensor

    from ..broyden.problem import AffineMap

HISTORY_LENGTH = 6
"""Evaluations that are combined, the newest included: the default of this package and torchdeq."""


@dataclass(frozen=True)
class AndersonCase(Case):
    """One solve: ``batch`` problems of dimension ``dim``, ``steps`` Anderson steps."""

    def floor_bytes(self, itemsize: int, history_itemsize: int | None = None) -> int:
        """The least memory traffic of the solver in bytes, the map excluded.

        The first step reads z and f(z) twice, and writes z and what the next one subtracts: 7 dim
        elements per sample. A step over k stored changes moves (2k + 9) dim, k at most
        ``HISTORY_LENGTH - 1``.
        """
        stored = itemsize if history_itemsize is None else history_itemsize
        changes = sum(min(step, HISTORY_LENGTH - 1) for step in range(self.steps))
        state = 7 + 9 * (self.steps - 1)
        return self.batch * self.dim * (2 * changes * stored + state * itemsize)

    def working_set_bytes(self, itemsize: int, history_itemsize: int | None = None) -> int:
        """Bytes a solve keeps coming back to: changes of residual and image, and five states."""
        stored = itemsize if history_itemsize is None else history_itemsize
        changes = 2 * min(self.steps, HISTORY_LENGTH - 1)
        return self.batch * self.dim * (changes * stored + 5 * itemsize)

    def reference(self, f: AffineMap, z0: Tensor) -> Tensor:
        """The best iterates, by plain PyTorch."""
        from .plain_pytorch import solve_plain

        return solve_plain(f, z0, self.steps)


CASES = (
    AndersonCase(1, 1_000, 20),
    AndersonCase(32, 1_000, 20),
    AndersonCase(8, 61_440, 18),
    AndersonCase(32, 61_440, 18),
)
QUICK_CASES = (AndersonCase(32, 1_000, 20), AndersonCase(8, 61_440, 18))
