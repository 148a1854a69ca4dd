"""How many cores' worth of arithmetic the threads get while something is timed.

A virtual machine's cores may be threads of one real core, for as long as its host likes. Nobody
inside is told, and work that keeps the arithmetic busy takes twice as long, other work does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch

from deq_zoo.threads import use_threads

from .timing import Timed

SCALES_WELL = 0.75
"""Below this share of a core per thread, threads share cores."""
_SIZE = 512
_ONE = "arithmetic of one thread"
_ALL = "arithmetic of all threads"


class ArithmeticProbe:
    """A matrix product, by one thread and by all of them, to be timed among other calls.

    Args:
        device: of what is timed; on a GPU there is nothing to find out.
    """

    def __init__(self, device: str) -> None:
        self.calls: dict[str, Timed] = {}
        threads = torch.get_num_threads()
        if device != "cpu" or threads == 1:
            return
        a, b, out = (torch.ones(_SIZE, _SIZE) for _ in range(3))

        def multiply() -> None:
            torch.mm(a, b, out=out)

        self.calls[_ONE] = Timed(multiply, context=lambda: use_threads(1))
        self.calls[_ALL] = Timed(multiply, context=lambda: use_threads(threads))

    def cores(self, seconds: Mapping[str, tuple[float, ...]]) -> float | None:
        """Cores by the median round of `time_interleaved`; None where it was not timed."""
        if not self.calls or _ONE not in seconds:
            return None
        ratios = [one / all_ for one, all_ in zip(seconds[_ONE], seconds[_ALL], strict=True)]
        return statistics.median(ratios)
