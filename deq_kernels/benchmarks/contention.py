"""How much of the processor others used while something was timed."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
# Fields of the "cpu" line after its name: user nice system idle iowait irq softirq steal.
_IDLE_FIELDS = (3, 4)
_COUNTED_FIELDS = 8
DISTURBED_CORES = 0.1
"""Above this many cores used by others, a timing with all threads is worth little."""
DISTURBED_HOST_CORES = 1.0
"""The same for a timing on a GPU, for which one thread of the host does all the work."""


@dataclass(frozen=True)
class _Reading:
    wall: float
    own: float
    machine: float


class OtherLoad:
    """Counts the cores that other processes (and the hypervisor) use from its creation on.

    One busy neighbour slows a program with a thread on every core by far more than its share,
    because all threads wait at every barrier for the one that was put aside.
    """

    def __init__(self) -> None:
        self._start = _read()

    def cores(self) -> float | None:
        """Cores used by others on average since the creation; None where the system does not say.

        That is without Linux's /proc, and where its counters stand still, as some containers have
        them: this process alone would have moved them.
        """
        now = _read()
        if self._start is None or now is None or now.machine <= self._start.machine:
            return None
        others = (now.machine - self._start.machine) - (now.own - self._start.own)
        return max(0.0, others / (now.wall - self._start.wall))


def _read() -> _Reading | None:
    """The seconds passed, used by this process, and used by the whole machine."""
    if not _STAT.exists():
        return None
    name, *fields = _STAT.read_text(encoding="ascii").splitlines()[0].split()
    if name != "cpu":
        raise RuntimeError(f"the first line of {_STAT} must be that of all cores, got {name!r}")
    ticks = [int(field) for field in fields[:_COUNTED_FIELDS]]
    busy = sum(ticks) - sum(ticks[index] for index in _IDLE_FIELDS)
    return _Reading(
        wall=time.monotonic(),
        own=time.process_time(),
        machine=busy / os.sysconf("SC_CLK_TCK"),
    )
