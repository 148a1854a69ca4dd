"""The benchmark cases: batch size, state dimension, quasi-Newton steps, and their traffic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from .problem import AffineMap

_PATTERN = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Case:
    """One solve: ``batch`` independent problems of dimension ``dim``, ``steps`` Broyden steps.

    A solve of ``steps`` steps evaluates the map ``steps + 1`` times: once at the start and once
    after every step.
    """

    batch: int
    dim: int
    steps: int

    @property
    def name(self) -> str:
        """The name on the command line and in every report: ``BATCHxDIMxSTEPS``."""
        return f"{self.batch}x{self.dim}x{self.steps}"

    @property
    def evaluations(self) -> int:
        """Evaluations of the map in one solve."""
        return self.steps + 1

    def floor_bytes(self, itemsize: int, history_itemsize: int | None = None) -> int:
        """The least memory traffic of the solver in bytes, the map excluded.

        A step with k stored directions reads each of them twice, reads z and f(z) twice and writes
        the new direction and the new z: (2k + 6) dim elements per sample, summed here over
        k = 0 .. steps - 1. Norms of the last evaluation and copies of the best iterate are not
        counted, so a share of bandwidth computed from this number is an underestimate.

        Args:
            itemsize: bytes per element of the state.
            history_itemsize: bytes per element of the stored directions; those of the state if
                not given.
        """
        stored = itemsize if history_itemsize is None else history_itemsize
        history_reads = self.steps * (self.steps - 1) * stored  # sum of 2k
        state_traffic = 6 * self.steps * itemsize
        return self.batch * self.dim * (history_reads + state_traffic)

    def working_set_bytes(self, itemsize: int, history_itemsize: int | None = None) -> int:
        """Bytes a solve keeps coming back to: the stored directions, z, f(z) and the best z."""
        stored = itemsize if history_itemsize is None else history_itemsize
        return self.batch * self.dim * (self.steps * stored + 3 * itemsize)

    def reference(self, f: AffineMap, z0: Tensor) -> Tensor:
        """The best iterates, by plain PyTorch: what every provider is compared with."""
        from .plain_pytorch import solve_rearranged

        return solve_rearranged(f, z0, self.steps)


CaseT = TypeVar("CaseT", bound=Case)


CASES = (
    Case(1, 64, 20),
    Case(1, 1_000, 20),
    Case(32, 1_000, 20),
    Case(1, 50_000, 18),
    Case(8, 61_440, 18),
    Case(32, 61_440, 18),
    Case(8, 188_160, 26),
    Case(14, 105_000, 30),
)
QUICK_CASES = (Case(32, 1_000, 20), Case(8, 61_440, 18))
GPU_CASES = (
    Case(1, 1_000, 20),
    Case(32, 1_000, 20),
    Case(1, 50_000, 18),
    Case(8, 61_440, 18),
    Case(32, 61_440, 18),
    Case(32, 188_160, 26),
    Case(14, 105_000, 30),
)
GPU_QUICK_CASES = (Case(32, 1_000, 20), Case(32, 61_440, 18))
MEMORY_CASE = Case(32, 61_440, 18)


def parse_case(text: str, kind: type[CaseT]) -> CaseT:
    """Read ``BATCHxDIMxSTEPS``, a case of that kind; those that are in no list are allowed.

    Raises:
        ValueError: the text is not three positive integers joined by ``x``.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"a case is BATCHxDIMxSTEPS with three positive integers, but got {text!r}; "
            f"write for example {CASES[2].name}"
        )
    return kind(*(int(group) for group in match.groups()))
