"""Interleaved rounds of timed calls, and their medians and quartiles."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

_SAMPLE_SECONDS = 5e-3
_MAX_REPEATS = 1000

Clock = Callable[[Callable[[], object], int], float]
"""``clock(call, repeats)``: makes the call so many times and returns the seconds of one."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, and the samples they come from."""

    median: float
    lower_quartile: float
    upper_quartile: float
    samples: tuple[float, ...]


def spread(samples: Sequence[float]) -> Spread:
    """Summarise at least one sample; quartiles are interpolated linearly between the samples."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], tuple(samples))
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, lower, upper, tuple(samples))


def ratio_spread(samples: Sequence[float], base: Sequence[float] | None) -> Spread | None:
    """Of samples over those of the same rounds of another call; None where that was not timed."""
    if base is None:
        return None
    return spread([sample / other for sample, other in zip(samples, base, strict=True)])


def finite_or_none(value: float) -> float | None:
    """The value as JSON can hold it, which has no NaN; the reason of a refusal keeps that."""
    return value if math.isfinite(value) else None


def wall_clock(call: Callable[[], object], repeats: int) -> float:
    """The clock on the wall, for calls that return when their work is done."""
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / repeats * 1e-9


@dataclass(frozen=True)
class Timed:
    """One call that takes part in the rounds.

    Attributes:
        call: what is timed.
        clock: what times it.
        context: what is entered around its samples, outside the clock, such as the choice of a
            backend.
    """

    call: Callable[[], object]
    clock: Clock = wall_clock
    context: Callable[[], AbstractContextManager[object]] = nullcontext


def time_interleaved(
    calls: Mapping[str, Timed], *, rounds: int, say: Callable[[str], None]
) -> dict[str, tuple[float, ...]]:
    """Time every call once per round and return the seconds of one call, per round.

    Going round the calls (ABC, BCA, CAB, ...) spreads whatever disturbs the machine over all of
    them, so samples of the same round may be divided by each other. A sample of a short call
    repeats it for about 5 ms after one untimed call that brings its data back into the caches.
    """
    names = list(calls)
    repeats = {name: _repeats(timed) for name, timed in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _without_garbage_collection():
        for index in range(rounds):
            say(f"round {index + 1} of {rounds}")
            start = index % len(names)
            for name in names[start:] + names[:start]:
                timed = calls[name]
                with timed.context():
                    if repeats[name] > 1:
                        timed.call()
                    seconds[name].append(timed.clock(timed.call, repeats[name]))
    return {name: tuple(samples) for name, samples in seconds.items()}


def _repeats(timed: Timed) -> int:
    with timed.context():
        timed.call()
        once = timed.clock(timed.call, 1)
    return min(_MAX_REPEATS, max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-9))))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
